package admin

// Forecast tells what VMs would feel of a disk on some nodes, now and after each step of the plan that leads to its rule.
type Forecast struct {
	Disk     DiskRef      `json:"disk"`
	Recorded *RecordedIO  `json:"recorded,omitempty" doc:"what the disk's guest did of late; absent: nothing was recorded, and small requests all over the disk are assumed"`
	At       []ForecastAt `json:"at"`
}

// ForecastAt is the forecast for one node.
type ForecastAt struct {
	Node          NodeRef         `json:"node"`
	Felt          []Felt          `json:"felt" doc:"now, then after each step of the plan"`
	Inputs        []ForecastInput `json:"inputs" doc:"one per node with a replica in sync, now or later"`
	WithinPercent int             `json:"withinPercent" doc:"by which measured medians may differ"`
	Why           []string        `json:"why,omitempty" doc:"what was not measured"`
}

// Felt is how long requests of a guest take.
type Felt struct {
	When  string  `json:"when"`
	Read  Latency `json:"read"`
	Write Latency `json:"write"`
	Flush Latency `json:"flush"`
}

// Latency is a distribution of durations in two numbers.
type Latency struct {
	P50Micros int64 `json:"p50Micros"`
	P99Micros int64 `json:"p99Micros"`
}

// ForecastInput is what a forecast was made from, for one node with a replica.
type ForecastInput struct {
	Node     NodeRef `json:"node"`
	RTT      Latency `json:"rtt" doc:"from the node that the forecast is for"`
	Measured bool    `json:"measured" doc:"the round trip; otherwise it is estimated from coordinates"`
	Read     Latency `json:"read" doc:"of its store, up to 64 KiB"`
	Write    Latency `json:"write" doc:"of its store, up to 64 KiB"`
	Flush    Latency `json:"flush" doc:"of its store"`
}

// RecordedIO is what a disk's guest did of late.
type RecordedIO struct {
	Reads     RecordedRequests `json:"reads"`
	Writes    RecordedRequests `json:"writes"`
	Flushes   uint32           `json:"flushes"`
	FlushFelt Latency          `json:"flushFelt"`
}

// RecordedRequests is one kind of request.
type RecordedRequests struct {
	Count      uint32      `json:"count"`
	Sizes      []SizeCount `json:"sizes"`
	HotPercent int         `json:"hotPercent" doc:"of them go to the hottest tenth of the disk"`
	Felt       Latency     `json:"felt" doc:"by the guest"`
}

// SizeCount counts requests of a class of sizes.
type SizeCount struct {
	UpToBytes int64  `json:"upToBytes"`
	Count     uint32 `json:"count"`
}
