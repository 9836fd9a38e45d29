package sim

import (
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ukai/node/admin"
)

// scenarios says which tests hold the adversarial scenarios of section 6.2 of the protocol, by their numbers there: the sharpest first. The
// random campaigns of this package, the explorers in node/cell and node/volume and testnet/chaos meet most of them as well.
var scenarios = []struct {
	number int
	what   string
	tests  string // "package.Test ..."; "" if what it is about is not built
}{
	{1, "the holder crashes when a write is on one replica only", "node/volume.TestWriteThatReachedOneReplicaIsSettledByTheNextHolder node/volume.TestEveryOrderOfEventsIsStrictlyLinearizable"},
	{2, "as 1, and the recovery crashes half-way, and the next picks another authority", "testnet/sim.TestScenario02ARecoveryThatCrashesHalfWayLeavesOneOutcome node/volume.TestEveryOrderOfEventsIsStrictlyLinearizable"},
	{3, "a partition with the holder in the minority", "testnet/sim.TestScenario03APartitionedHolderGetsNoAckAndItsWritesAreUndone node/volume.TestZombieHolderGetsNoAckAndReadsNothingStale"},
	{4, "a partition with the holder in the majority", "testnet/sim.TestScenario04AHolderWithTheMajorityGoesOnAndTheOthersGetNothing"},
	{5, "a shrink that one arbiter accepted, and then the holder dies", "testnet/sim.TestScenario05AShrinkThatOneArbiterAcceptedLosesNothing node/volume.TestShrinkInDoubtIsSettled node/cell.TestInDoubtIsSettledByProposingTheSameAgain"},
	{6, "a shrink that was committed and its reply lost", "node/volume.TestWhileAShrinkIsInDoubtItsReplicaIsNotRead"},
	{7, "a write delayed in a dead connection", "node/volume.TestLateRequestOfADeadConnectionIsRefused"},
	{8, "a write to a syncing replica that is delayed past the copy of its block", "node/volume.TestOneWriteToEachChunkDuringAResyncIsOnTheReplica node/volume.TestEqualHashesProveNothingWhileAWriteIsOwed node/volume.TestBrokenRulesOfTheDataPathAreFound"},
	{9, "a guest's write between the reading and the writing of a copied chunk", "node/volume.TestGuestWritesOnWhileAReplicaReturns node/volume.TestBrokenRulesOfTheDataPathAreFound"},
	{10, "a grow of unknown outcome, and the holder dies", "node/volume.TestChangesOfUnknownOutcomeDuringAResync node/volume.TestGrowInDoubtNeedsTheReplicaForWritesAndReadsItNot node/volume.TestBrokenRulesOfTheDataPathAreFound"},
	{11, "a replica loses power under a live holder", "node/volume.TestFlushIsNotVouchedForByAReplicaThatLostPower"},
	{12, "all replicas lose power under a live holder", "testnet/sim.TestScenario12WhenAllReplicasLosePowerTheGuestIsToldAndWhatWasFlushedIsThere node/volume.TestLastReplicaThatLostUnflushedWritesPoisonsTheDisk"},
	{13, "holder and replica die, and the replica that lost power is back first", "testnet/sim.TestScenario13OfAReplicaThatLostPowerOnlyWhatWasNotFlushedMayBeGone node/volume.TestUncleanReplicaIsNotTheAuthority"},
	{14, "a flapping link during overlapping writes", "testnet/sim.TestScenario14AFlappingLinkNeitherReordersNorRepeatsWrites node/volume.TestNothingIsLostWhateverFailsAtWhateverStepOfAResync"},
	{15, "a live migration of which an end dies", "testnet/sim.TestScenario15AMigrationOfWhichAnEndDiesIsFinishedElsewhere testnet/e2e.TestAGuestMigratesBetweenHostsUnderLoadAndNeverSeesAnErrorOrAWrongByte"},
	{16, "a migration that is called off after the source let go", "testnet/sim.TestScenario16AMigrationThatIsCalledOffGoesOnAtTheSource fusefs.TestLiveMigrationHandsTheDiskOver"},
	{17, "a second user on another host", "testnet/e2e.TestASecondWriterElsewhereIsRefused fusefs.TestLockOfADiskHeldElsewhereIsRefusedAndNotTaken fusefs.TestTwoQEMUsCannotHaveOneDisk"},
	{18, "QEMU is killed and starts again at once", "fusefs.TestQueryAndConflictWaitForTheReleaseOfAClosedFile fusefs.TestOFDLocksConflictAndEndWithTheirFile"},
	{19, "a relocation of which source, target, holder or arbiter dies at some step", "testnet/sim.TestARelocationSurvivesTheDeathOfAnyMachineAtAnyMoment node/volume.TestNothingIsLostWhateverFailsAtWhateverStepOfAResync"},
	{20, "an old record names a replica that was retired", "node.TestAReplicaThatTheRecordNamesIsNotPutAsideWhateverGossipSays node/volume.TestReplicaThatIsRetiredBeforeItReturnsIsNotNamedAgain"},
	{21, "a replacement of arbiters that is interrupted", "node/cell.TestInterruptedReplacementOfArbitersIsFinishedByTheNextProposer node/cell.TestArbitersAreReplacedAndOldOnesRedirect node/cell.TestEveryOrderOfMessagesKeepsOneChain"},
	{22, "an arbiter's disk is wiped", "testnet/sim.TestScenario22AnArbiterThatWasWipedIsAnotherNodeAndIsReplaced"},
	{23, "a node's database is an old copy", "gossip.TestARestoredDatabaseIsQuarantined gossip.TestACopyOfANodeThatRunsDoesNotServe"},
	{24, "two disks of one name; a node that was away for long", "node.TestOfDisksCreatedAtOnceUnderOneNameOneIsThereAndNothingOfTheOthers crdt.TestTwoNodesCreateTheSameName fusefs.TestTwoDisksOfOneNameCannotBeOpened gossip.TestOutdatedNodesBringNothingBack"},
	{25, "a host is suspended for an hour", "testnet/sim.TestScenario25AHostThatWasSuspendedReadsNothingStale"},
	{26, "snapshots and clones", ""},
	{27, "a replica that missed a discard returns", "testnet/sim.TestScenario27WhatWasDiscardedStaysZeroOnAReplicaThatReturns"},
	{28, "a full or broken disk of one replica", "testnet/sim.TestScenario28AReplicaWhoseDiskFailsLeavesBeforeTheRequestReturns node/volume.TestFullReplicaLeavesWhileAnotherHasRoom node/volume.TestBrokenReplicaLeaves"},
	{29, "both sides of an unsafe mesh of two are forced", "testnet/sim.TestWhenBothSidesOfACutGoOnBothHistoriesAreKept testnet/sim.TestScenario29BothHistoriesOfASplitBrainAreKeptAndShown crdt.TestSplitBrainIsShownUntilOneSideStandsForBoth node/cell.TestForcedTakeoverBeginsALineage"},
	{30, "a one-way partition between holder and replica", "testnet/sim.TestScenario30AReplicaThatCannotAnswerIsDroppedAndItsOwnWritesAreUndone node/volume.TestZombieWritesOnTheReturningReplicaAreUndone"},
}

func TestEachScenarioOfTheProtocolHasATest(t *testing.T) {
	known := map[string]bool{}
	root := filepath.Join("..", "..")
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case e.IsDir() && path != root && (strings.HasPrefix(e.Name(), ".") || e.Name() == "run" || e.Name() == "bin"):
			return fs.SkipDir
		case !strings.HasSuffix(path, "_test.go"):
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		pkg, err := filepath.Rel(root, filepath.Dir(path))
		for _, d := range file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil {
				known[filepath.ToSlash(pkg)+"."+f.Name.Name] = true
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for i, s := range scenarios {
		if s.number != i+1 {
			t.Errorf("scenario %d is in place %d", s.number, i+1)
		}
		for _, name := range strings.Fields(s.tests) {
			if !known[name] {
				t.Errorf("scenario %d, %s: there is no test %s any more: name another that holds it", s.number, s.what, name)
			}
		}
	}
	if len(scenarios) != 30 {
		t.Errorf("%d of the 30 scenarios", len(scenarios))
	}
}

// attach attaches a disk on a node and returns it.
func (m *Mesh) attach(name, disk string) *guest {
	m.T.Helper()
	g := &guest{m: m, n: m.Nodes[name], disk: disk}
	if err := g.n.Volume(disk).Attach(context.Background()); err != nil {
		m.T.Fatal(err)
	}
	return g
}

// awaitAttach attaches a disk as soon as that is possible.
func (m *Mesh) awaitAttach(name, disk string) *guest {
	m.T.Helper()
	m.Await(name+" attaches "+disk, func() error {
		d, err := m.Nodes[name].OpenDisk(disk)
		if err == nil {
			err = d.Attach(context.Background())
		}
		return err
	})
	return &guest{m: m, n: m.Nodes[name], disk: disk}
}

// guest is a program that has a disk attached.
type guest struct {
	m    *Mesh
	n    *Node
	disk string
}

// try writes a block of 4 KiB that begins with a number.
func (g *guest) try(block int, value byte) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	_, err := g.n.Volume(g.disk).WriteAt(ctx, filled(value), int64(block)*4096)
	return err
}

func (g *guest) write(block int, value byte) {
	g.m.T.Helper()
	if err := g.try(block, value); err != nil {
		g.m.T.Fatal(err)
	}
}

func (g *guest) flush() {
	g.m.T.Helper()
	if err := g.n.Volume(g.disk).Flush(context.Background()); err != nil {
		g.m.T.Fatal(err)
	}
}

func (g *guest) detach() {
	g.m.T.Helper()
	if err := g.n.Volume(g.disk).Detach(context.Background()); err != nil {
		g.m.T.Fatal(err)
	}
}

func filled(value byte) []byte {
	p := make([]byte, 4096)
	for i := range p {
		p[i] = value
	}
	return p
}

// reads returns what a node reads as the value of a block.
func (m *Mesh) reads(name, disk string, block int) (byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	p := make([]byte, 4096)
	if _, err := m.Nodes[name].Volume(disk).ReadAt(ctx, p, int64(block)*4096); err != nil {
		return 0, err
	}
	for _, b := range p {
		if b != p[0] {
			return 0, fmt.Errorf("block %d is torn: %d and %d", block, p[0], b)
		}
	}
	return p[0], nil
}

func (m *Mesh) wantReads(name, disk string, block int, want ...byte) byte {
	m.T.Helper()
	got, err := m.reads(name, disk, block)
	if err != nil {
		m.T.Fatal(err)
	}
	for _, w := range want {
		if got == w {
			return got
		}
	}
	m.T.Fatalf("%s reads %d in block %d, want %d", name, got, block, want)
	return 0
}

// wantEqualReplicas waits until all replicas of a disk are in sync and nobody holds it, and compares them.
func (m *Mesh) wantEqualReplicas(disk string, blocks int) {
	m.T.Helper()
	at := m.Order[0]
	for _, n := range m.Order {
		if n.Node != nil {
			at = n
			break
		}
	}
	var info admin.Disk
	m.Await("all replicas of "+disk+" are in sync and nobody holds it", func() (err error) {
		if info, err = at.Disk(context.Background(), disk); err != nil {
			return err
		}
		for _, r := range info.Replicas {
			if r.Role != admin.InSync {
				return fmt.Errorf("%s is %s: %s", r.Node, r.Role, r.Why)
			}
		}
		if info.State != admin.DiskIdle {
			return fmt.Errorf("it is %s", info.State)
		}
		return nil
	})
	var all [][]byte
	for _, r := range info.Replicas {
		n := m.Nodes[r.Node.Name]
		if n.Node != nil {
			n.Crash()
		}
		x, err := n.Store.OpenReplica(info.ID, r.ID)
		if err != nil {
			m.T.Fatal(err)
		}
		p := make([]byte, blocks*4096)
		if err := errors.Join(x.ReadAt(p, 0), x.Close()); err != nil {
			m.T.Fatal(err)
		}
		all = append(all, p)
	}
	for i := range all {
		if at := differ(all[0], all[i]); at >= 0 {
			m.T.Fatalf("the replicas of %s on %s and %s differ in sector %d", disk, info.Replicas[0].Node, info.Replicas[i].Node, at)
		}
	}
}
