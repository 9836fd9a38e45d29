package gossip

import "sync/atomic"

// counters are what this node has done since Open.
type counters struct {
	packetsIn, packetsOut, packetsRefused   atomic.Uint64
	packetBytesIn, packetBytesOut           atomic.Uint64
	membershipBytesIn, membershipBytesOut   atomic.Uint64
	catalogBytesIn, catalogBytesOut         atomic.Uint64
	streamsRefused, messagesRefused         atomic.Uint64
	deltasQueued, deltasSent, deltasMerged  atomic.Uint64
	entriesMerged, entriesSkewed            atomic.Uint64
	entriesConflicting                      atomic.Uint64
	rootsCompared, rootsDiffered            atomic.Uint64
	digestsCompared, bucketsDiffered        atomic.Uint64
	pulls, exchanges, exchangesFailed       atomic.Uint64
	entriesPulled, entriesPushed            atomic.Uint64
	joins, joinsFailed, rejoins             atomic.Uint64
	publishes, journalWrites, journalErrors atomic.Uint64
	coordinatesRefused                      atomic.Uint64
}

// Counters returns what this node has done since Open, by metric name. All values only grow.
func (m *Mesh) Counters() map[string]uint64 {
	c := &m.count
	named := map[string]*atomic.Uint64{
		"packets_received_total":                 &c.packetsIn,
		"packets_sent_total":                     &c.packetsOut,
		"packets_refused_total":                  &c.packetsRefused,
		"packet_received_bytes_total":            &c.packetBytesIn,
		"packet_sent_bytes_total":                &c.packetBytesOut,
		"membership_stream_received_bytes_total": &c.membershipBytesIn,
		"membership_stream_sent_bytes_total":     &c.membershipBytesOut,
		"catalog_stream_received_bytes_total":    &c.catalogBytesIn,
		"catalog_stream_sent_bytes_total":        &c.catalogBytesOut,
		"streams_refused_total":                  &c.streamsRefused,
		"messages_refused_total":                 &c.messagesRefused,
		"deltas_queued_total":                    &c.deltasQueued,
		"deltas_sent_total":                      &c.deltasSent,
		"deltas_merged_total":                    &c.deltasMerged,
		"entries_merged_total":                   &c.entriesMerged,
		"entries_refused_skew_total":             &c.entriesSkewed,
		"entries_conflicting_total":              &c.entriesConflicting,
		"roots_compared_total":                   &c.rootsCompared,
		"roots_differed_total":                   &c.rootsDiffered,
		"digests_compared_total":                 &c.digestsCompared,
		"digest_buckets_differed_total":          &c.bucketsDiffered,
		"pulls_total":                            &c.pulls,
		"exchanges_total":                        &c.exchanges,
		"exchanges_failed_total":                 &c.exchangesFailed,
		"entries_pulled_total":                   &c.entriesPulled,
		"entries_pushed_total":                   &c.entriesPushed,
		"joins_total":                            &c.joins,
		"joins_failed_total":                     &c.joinsFailed,
		"rejoins_total":                          &c.rejoins,
		"publishes_total":                        &c.publishes,
		"journal_writes_total":                   &c.journalWrites,
		"journal_errors_total":                   &c.journalErrors,
		"coordinates_refused_total":              &c.coordinatesRefused,
	}
	out := make(map[string]uint64, len(named))
	for name, v := range named {
		out["ukai_gossip_"+name] = v.Load()
	}
	return out
}
