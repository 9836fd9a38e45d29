package admin

import (
	"context"
	"net/http"
	"reflect"

	"github.com/danielgtaylor/huma/v2"
)

// answer is what a route returns.
type answer[T any] struct{ Body T }

// reply turns what the backend returned into an answer or a Problem.
func reply[T any](v T, err error) (*answer[T], error) {
	if err != nil {
		return nil, problemOf(err)
	}
	fillLists(reflect.ValueOf(&v).Elem())
	return &answer[T]{Body: v}, nil
}

// fillLists makes the nil lists of v empty ones, so that a client sees [] and never null.
func fillLists(v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			fillLists(v.Elem())
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				fillLists(v.Field(i))
			}
		}
	case reflect.Slice:
		if v.IsNil() && v.CanSet() {
			v.Set(reflect.MakeSlice(v.Type(), 0, 0))
		}
		for i := range v.Len() {
			fillLists(v.Index(i))
		}
	}
}

// DiskPath is the part of a request that names a disk. It is exported because huma looks into exported fields only.
type DiskPath struct {
	Disk string `path:"disk" maxLength:"63" doc:"name or id of the disk"`
}

// NodePath is the part of a request that names a node.
type NodePath struct {
	Node string `path:"node" maxLength:"63" doc:"name or id of the node"`
}

// routes adds one route per method of the backend.
func (s *Server) routes(api huma.API) {
	b := s.backend
	op := func(id, method, path, summary string) huma.Operation {
		return huma.Operation{
			OperationID: id, Method: method, Path: path, Summary: summary,
			Errors: statuses(), MaxBodyBytes: maxBody, BodyReadTimeout: headerTimeout,
		}
	}
	created := func(o huma.Operation) huma.Operation { o.DefaultStatus = http.StatusCreated; return o }

	huma.Register(api, op("self", http.MethodGet, "/v1/self", "Who this node is"),
		func(ctx context.Context, _ *struct{}) (*answer[Self], error) { return reply(b.Self(ctx)) })
	huma.Register(api, op("status", http.MethodGet, "/v1/status", "The mesh as this node sees it"),
		func(ctx context.Context, _ *struct{}) (*answer[Status], error) { return reply(b.Status(ctx)) })

	huma.Register(api, op("node-change", http.MethodPatch, "/v1/nodes/{node}", "Set labels and roles of a node"),
		func(ctx context.Context, in *struct {
			NodePath
			Body NodeChange
		}) (*answer[NodeChanged], error) {
			return reply(b.ChangeNode(ctx, in.Node, in.Body))
		})
	huma.Register(api, op("node-retire", http.MethodPost, "/v1/nodes/{node}/retire", "Take a node that never comes back out of the mesh"),
		func(ctx context.Context, in *struct {
			NodePath
			Body RetireNode
		}) (*answer[NodeRetired], error) {
			return reply(b.RetireNode(ctx, in.Node, in.Body))
		})
	huma.Register(api, op("placements", http.MethodGet, "/v1/placements", "What is wanted and what is true, for all disks"),
		func(ctx context.Context, _ *struct{}) (*answer[[]Placement], error) { return reply(b.Placements(ctx)) })
	huma.Register(api, op("survive", http.MethodGet, "/v1/survive", "What becomes of the disks when nodes are gone"),
		func(ctx context.Context, in *struct {
			Without string `query:"without" maxLength:"2048" doc:"selector of the nodes that are gone, such as dc=osaka; absent: each node and each datacenter in turn"`
		}) (*answer[Survival], error) {
			return reply(b.Survive(ctx, in.Without))
		})
	huma.Register(api, op("placement", http.MethodGet, "/v1/disks/{disk}/placement", "What is wanted and what is true, for one disk"),
		func(ctx context.Context, in *DiskPath) (*answer[Placement], error) {
			return reply(b.Placement(ctx, in.Disk))
		})
	huma.Register(api, op("forecast", http.MethodGet, "/v1/disks/{disk}/forecast", "What a VM would feel of a disk on other nodes"),
		func(ctx context.Context, in *struct {
			DiskPath
			At   string   `query:"at" required:"true" maxLength:"2048" doc:"selector of the nodes, such as dc=osaka"`
			Term []string `query:"term" maxItems:"64" doc:"of a rule that the disk does not have yet; absent: its own rule"`
		}) (*answer[Forecast], error) {
			return reply(b.Forecast(ctx, in.Disk, in.At, in.Term))
		})
	huma.Register(api, op("disk-place", http.MethodPut, "/v1/disks/{disk}/placement", "Give a disk a rule"),
		func(ctx context.Context, in *struct {
			DiskPath
			Body PlaceDisk
		}) (*answer[Placement], error) {
			return reply(b.PlaceDisk(ctx, in.Disk, in.Body))
		})

	huma.Register(api, op("defaults", http.MethodGet, "/v1/defaults", "What holds where nothing else is said"),
		func(ctx context.Context, _ *struct{}) (*answer[Defaults], error) { return reply(b.Defaults(ctx)) })
	huma.Register(api, op("defaults-set", http.MethodPatch, "/v1/defaults", "Change the rule of new disks, and when what is lost is made anew"),
		func(ctx context.Context, in *struct{ Body SetDefaults }) (*answer[Defaults], error) {
			return reply(b.SetDefaults(ctx, in.Body))
		})
	huma.Register(api, op("links", http.MethodGet, "/v1/links", "Links with a budget for background copies"),
		func(ctx context.Context, _ *struct{}) (*answer[[]Link], error) { return reply(b.Links(ctx)) })
	huma.Register(api, op("link-set", http.MethodPut, "/v1/links/{link}", "Give a link a budget for background copies"),
		func(ctx context.Context, in *struct {
			Link string `path:"link" maxLength:"127" doc:"two datacenters joined by -"`
			Body SetLink
		}) (*answer[Link], error) {
			return reply(b.SetLink(ctx, in.Link, in.Body))
		})

	huma.Register(api, op("jobs", http.MethodGet, "/v1/jobs", "What is being done to bring disks to where they shall be"),
		func(ctx context.Context, in *struct {
			Ended bool `query:"ended" doc:"also what ended within the last hour"`
			Local bool `query:"local" doc:"only what this node does"`
		}) (*answer[[]Job], error) {
			return reply(b.Jobs(ctx, JobQuery{Ended: in.Ended, Local: in.Local}))
		})
	watch := op("jobs-watch", http.MethodGet, jobsWatchPath, "Jobs, as server-sent events")
	watch.Responses = map[string]*huma.Response{"200": {
		Description: "A stream of events; the data of each is a list of all jobs",
		Content: map[string]*huma.MediaType{"text/event-stream": {
			Schema: api.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[[]Job](), true, "Jobs"),
		}},
	}}
	huma.Register(api, watch, s.watchJobs)
	huma.Register(api, op("job-order", http.MethodPost, "/v1/disks/{disk}/job", "Pause, resume, retry or cancel the job of a disk"),
		func(ctx context.Context, in *struct {
			DiskPath
			Body OrderJob
		}) (*answer[Job], error) {
			return reply(b.OrderJob(ctx, in.Disk, in.Body))
		})
	huma.Register(api, op("evacuate", http.MethodPost, "/v1/evacuate", "Move everything off some nodes, or tell what is left there"),
		func(ctx context.Context, in *struct{ Body Evacuate }) (*answer[Evacuation], error) {
			return reply(b.Evacuate(ctx, in.Body))
		})

	huma.Register(api, created(op("disk-create", http.MethodPost, "/v1/disks", "Create a disk")),
		func(ctx context.Context, in *struct{ Body NewDisk }) (*answer[DiskCreated], error) {
			return reply(b.CreateDisk(ctx, in.Body))
		})
	huma.Register(api, op("disks", http.MethodGet, "/v1/disks", "List disks"),
		func(ctx context.Context, in *struct {
			Removed bool `query:"removed" doc:"those that are removed and can be restored"`
		}) (*answer[[]Disk], error) {
			return reply(b.Disks(ctx, in.Removed))
		})
	huma.Register(api, op("doctor", http.MethodGet, "/v1/doctor", "What is not as it should be, and what would help"),
		func(ctx context.Context, _ *struct{}) (*answer[[]Warning], error) { return reply(b.Doctor(ctx)) })
	huma.Register(api, op("disk", http.MethodGet, "/v1/disks/{disk}", "Everything about one disk"),
		func(ctx context.Context, in *DiskPath) (*answer[Disk], error) { return reply(b.Disk(ctx, in.Disk)) })
	huma.Register(api, op("disk-resize", http.MethodPost, "/v1/disks/{disk}/resize", "Grow a disk"),
		func(ctx context.Context, in *struct {
			DiskPath
			Body ResizeDisk
		}) (*answer[Disk], error) {
			return reply(b.ResizeDisk(ctx, in.Disk, in.Body))
		})
	huma.Register(api, op("disk-remove", http.MethodPost, "/v1/disks/{disk}/remove", "Remove a disk; it can be restored for a while"),
		func(ctx context.Context, in *struct {
			DiskPath
			Body RemoveDisk
		}) (*answer[Disk], error) {
			return reply(b.RemoveDisk(ctx, in.Disk, in.Body))
		})
	huma.Register(api, op("disk-restore", http.MethodPost, "/v1/disks/{disk}/restore", "Restore a removed disk"),
		func(ctx context.Context, in *struct {
			DiskPath
			Body RestoreDisk
		}) (*answer[Disk], error) {
			return reply(b.RestoreDisk(ctx, in.Disk, in.Body))
		})
	huma.Register(api, op("disk-rename", http.MethodPost, "/v1/disks/{disk}/rename", "Rename a disk"),
		func(ctx context.Context, in *struct {
			DiskPath
			Body RenameDisk
		}) (*answer[Disk], error) {
			return reply(b.RenameDisk(ctx, in.Disk, in.Body))
		})
	huma.Register(api, op("disk-set", http.MethodPost, "/v1/disks/{disk}/set", "Change what a disk does for safety"),
		func(ctx context.Context, in *struct {
			DiskPath
			Body SetDisk
		}) (*answer[Disk], error) {
			return reply(b.SetDisk(ctx, in.Disk, in.Body))
		})
	huma.Register(api, op("disk-quorum", http.MethodPut, "/v1/disks/{disk}/quorum", "Say who decides about a disk"),
		func(ctx context.Context, in *struct {
			DiskPath
			Body SetQuorum
		}) (*answer[Disk], error) {
			return reply(b.SetQuorum(ctx, in.Disk, in.Body))
		})
	huma.Register(api, op("disk-force", http.MethodPost, "/v1/disks/{disk}/force", "Go on with a disk whose arbiters are gone for good"),
		func(ctx context.Context, in *struct {
			DiskPath
			Body ForceDisk
		}) (*answer[Disk], error) {
			return reply(b.ForceDisk(ctx, in.Disk, in.Body))
		})
	huma.Register(api, op("disk-pick", http.MethodPost, "/v1/disks/{disk}/pick", "Say with which of its histories a disk goes on"),
		func(ctx context.Context, in *struct {
			DiskPath
			Body PickDisk
		}) (*answer[Disk], error) {
			return reply(b.PickDisk(ctx, in.Disk, in.Body))
		})
	huma.Register(api, op("disk-discard", http.MethodPost, "/v1/disks/{disk}/discard", "Give up a history that a disk does not go on with"),
		func(ctx context.Context, in *struct {
			DiskPath
			Body DiscardHistory
		}) (*answer[Disk], error) {
			return reply(b.DiscardHistory(ctx, in.Disk, in.Body))
		})
	huma.Register(api, op("disk-scrub", http.MethodPost, "/v1/disks/{disk}/scrub", "Look for corruption in a disk, and repair it"),
		func(ctx context.Context, in *struct {
			DiskPath
			Body ScrubDisk
		}) (*answer[Disk], error) {
			return reply(b.ScrubDisk(ctx, in.Disk, in.Body))
		})
	huma.Register(api, op("disk-takeover", http.MethodPost, "/v1/disks/{disk}/takeover", "Depose the holder of a disk"),
		func(ctx context.Context, in *struct {
			DiskPath
			Body Takeover
		}) (*answer[Disk], error) {
			return reply(b.Takeover(ctx, in.Disk, in.Body))
		})
	huma.Register(api, op("disk-handover", http.MethodPost, "/v1/disks/{disk}/handover", "Move the right to write to a node"),
		func(ctx context.Context, in *struct {
			DiskPath
			Body Handover
		}) (*answer[Disk], error) {
			return reply(b.Handover(ctx, in.Disk, in.Body))
		})
	huma.Register(api, op("disk-map", http.MethodGet, "/v1/disks/{disk}/map", "Where the blocks of a disk lie"),
		func(ctx context.Context, in *DiskPath) (*answer[Map], error) { return reply(b.DiskMap(ctx, in.Disk)) })

	huma.Register(api, op("leave", http.MethodPost, "/v1/leave", "Have this node announce that it goes, and end"),
		func(ctx context.Context, in *struct{ Body Leave }) (*answer[Leaving], error) {
			return reply(b.Leave(ctx, in.Body))
		})

	events := op("events", http.MethodGet, eventsPath, "What happens, as server-sent events")
	events.Responses = map[string]*huma.Response{"200": {
		Description: "A stream of events; the data of each is an Event",
		Content: map[string]*huma.MediaType{"text/event-stream": {
			Schema: api.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[Event](), true, "Event"),
		}},
	}}
	huma.Register(api, events, s.events)
}
