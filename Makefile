# Bare `make` lists the targets.
SHELL := /bin/bash
.DEFAULT_GOAL := help
export GOTOOLCHAIN := local

GO      ?= go
BIN     := bin/ukai-node
SOURCES := $(shell find . -path ./run -prune -o -name '*.go' -print) go.mod go.sum
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X main.version=$(VERSION)
LINT    := $(GO) tool -modfile=.ci/tools/go.mod golangci-lint
TESTSUM := $(GO) tool -modfile=.ci/tools/go.mod gotestsum

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: $(BIN) ## build bin/ukai-node
	@:

$(BIN): $(SOURCES)
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $@ ./cmd/ukai-node

.PHONY: up
up: ## install what is missing, start a mesh of 4 nodes under ./run and show a disk at work
	@.ci/setup up
	@$(MAKE) --no-print-directory build
	@testnet/up

.PHONY: down
down: ## stop the mesh that `make up` started; its data under ./run is kept (make down WIPE=1 deletes it)
	@testnet/down $(if $(WIPE),--wipe)

.PHONY: check
check: lint ## vet, lint, unit and property tests (under 2 minutes)
	$(GO) vet ./...
	$(GO) test -short ./...

.PHONY: lint
lint: ## gofmt and golangci-lint
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { echo "gofmt would change:"; gofmt -l $$(git ls-files '*.go'); exit 1; }
	$(LINT) run ./...

.PHONY: test
test: ## every test: unit, property, simulation, end-to-end with real mounts, chaos (root; under 15 minutes)
	@.ci/setup test
	@$(MAKE) --no-print-directory build
	$(TESTSUM) --format pkgname --format-hide-empty-pkg -- -count=1 -timeout 20m ./...

.PHONY: model
model: ## explore the real protocol code by random walks; MINUTES=n per package (default 10), SEED=n to begin with
	MODEL_MINUTES=$(or $(MINUTES),10) MODEL_SEED=$(SEED) $(GO) test -count=1 -timeout 0 -run '^TestModel$$' -v ./node/cell ./node/volume

.PHONY: sim
sim: ## simulate whole meshes bit for bit, seed by seed; SEEDS=n (default 20000: also what takes long to be found), FIRST=s
	SIM_SEEDS=$(or $(SEEDS),20000) SIM_FIRST=$(or $(FIRST),0) $(GO) test -count=1 -timeout 0 -run '^(TestSimulatedMeshesKeepThePromisesOfADisk$(if $(SEEDS),,|TestRulesBrokenInTheSimulatorAreFoundOut))$$' -v ./node/volume

.PHONY: sim-mesh
sim-mesh: ## break meshes of real nodes in virtual time at random; SEEDS=n campaigns (default 500) from FIRST=s
	$(GO) test ./testnet/sim -run '^(TestNothingIsLostOrStale|TestDisksFollowRules)' -count=1 -v -timeout 0 -seeds $(or $(SEEDS),500) -first $(or $(FIRST),1)

.PHONY: sim-kills
sim-kills: ## kill each machine of a relocation at each of its moments in each way, in virtual time (10 minutes)
	$(GO) test ./testnet/sim -run TestARelocationSurvives -count=1 -v -timeout 0 -kills

.PHONY: chaos
chaos: ## break a real mesh at random and check what its users see; MINUTES=n (default 10), SEED=s
	@.ci/setup test
	$(GO) test ./testnet/chaos -run TestNoAcknowledgedWrite -count=1 -v -timeout $$(( $(or $(MINUTES),10) * 4 + 10 ))m -for $(or $(MINUTES),10)m -seed $(or $(SEED),0)

.PHONY: migrations
migrations: ## migrate a virtual machine between hosts, disturbed at random at each stage; COUNT=n (default 100)
	@.ci/setup test
	$(GO) test ./testnet/e2e -run TestAGuestMigrates -count=1 -v -timeout 0 -migrations $(or $(COUNT),100)

.PHONY: fuzz
fuzz: ## fuzz every parser of outside bytes; MINUTES=n in all (default 10)
	.ci/fuzz $(or $(MINUTES),10)

.PHONY: bench
bench: build ## fio on a real mesh beside the bounds of this machine (root); PEERS=1: and other stores; RUNTIME=seconds REPEAT=n ARGS='-jobs randwrite'
	@.ci/setup test
	$(GO) build -o bin/ukai-bench ./testnet/bench
	bin/ukai-bench -doc docs/performance.md -plot docs/performance.svg -raw bin/bench.json -seconds $(or $(RUNTIME),4) -repeat $(or $(REPEAT),3) $(if $(PEERS),-peers) $(ARGS)

.PHONY: bench-failover
bench-failover: build ## how long users wait when nodes die, freeze or are cut off, takeover and resync (root); REPEAT=n
	@.ci/setup test
	$(GO) build -o bin/ukai-bench ./testnet/bench
	bin/ukai-bench -failover -doc docs/performance.md -repeat $(or $(REPEAT),3)

.PHONY: bench-scale
bench-scale: build ## 1,000 disks and one of 16 TiB on a node (root), and a mesh of 200 virtual nodes; DISKS=n NODES=n
	@.ci/setup test
	$(GO) build -o bin/ukai-bench ./testnet/bench
	bin/ukai-bench -scale -disks $(or $(DISKS),1000) -doc docs/performance.md
	SCALE_NODES=$(or $(NODES),200) $(GO) test -count=1 -timeout 0 -run '^TestANodeOfManySaysLittle$$' -v ./testnet/sim

.PHONY: bench-copies
bench-copies: build ## what a guest feels of a relocation of its disk, with and without in turn (root); RUNTIME=seconds REPEAT=n
	@.ci/setup test
	$(GO) build -o bin/ukai-bench ./testnet/bench
	bin/ukai-bench -copies -doc docs/performance.md -seconds $(or $(RUNTIME),6) -repeat $(or $(REPEAT),3) -size 3072

.PHONY: bench-micro
bench-micro: ## micro benchmarks of the packages
	$(GO) test -run '^$$' -bench . -benchmem ./crdt ./node/wire ./node/store ./node/place ./fusefs

.PHONY: bench-check
bench-check: ## compare the micro benchmarks with those of another commit: make bench-check BASE=main [BENCH=Write4K] [COUNT=6]
	BENCH='$(BENCH)' COUNT='$(COUNT)' .ci/bench-check $(or $(BASE),main)

.PHONY: race
race: ## unit and property tests under the race detector
	$(GO) test -race -short ./...

.PHONY: docs
docs: ## regenerate what is generated: the command reference
	$(GO) test ./cmd/ukai-node -run TestCommandReference -update

.PHONY: tidy
tidy: ## tidy both modules
	$(GO) mod tidy
	cd .ci/tools && $(GO) mod tidy

.PHONY: clean
clean: ## delete what was built
	rm -rf bin dist
