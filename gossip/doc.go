// Package gossip is the mesh as one node sees it: who is here, how far away everybody is, and the catalog that all
// nodes share. It hides memberlist (membership and failure detection by the SWIM protocol) and serf's network
// coordinates behind UKAI's own words.
//
// # What spreads how
//
// A local change is merged into the catalog, journaled and queued. Small entries ride as deltas on memberlist's packets
// and are passed on by whoever learns something from them; entries that do not fit a packet are announced by key and
// version and pulled by stream. Every packet may be lost: nodes compare 8-byte roots of their catalogs with each ping and
// every two seconds with a random peer, and where roots differ and stay different they compare digests by stream, then the
// versions in the buckets that differ, then exchange just the entries that differ. memberlist's push/pull carries
// the whole 8 KiB digest as a second way to the same repair.
//
// # Who remembers whom
//
// Peers are kept in the journal with their last address. A node that sees none of them alive looks for seeds and
// remembered peers with exponential back-off, for ever; a node that sees some looks for missing ones every 30 to 60
// seconds, so that two halves of a mesh find each other after a long partition, which memberlist alone does not do.
// Peers that left in good order or were retired are not looked for.
//
// # Addresses
//
// The address other nodes use is Config.Advertise; without it the address the transport listens on; and when that is a
// wildcard, the address of the interface over which the first seed (or else the default route) is reached, or of any where there is no route. Behind
// address translation no node can know its own address: set Advertise there.
//
// # Locks
//
// The mesh's mutex is held only while the catalog or the table of members is read or changed in memory, never over
// input, output, channels or waiting. memberlist calls back while it holds its own lock and the mesh's lock nests inside it, so
// the functions passed to Update and View must neither block nor call the Mesh.
//
// # After Close
//
// memberlist does not wait for its probes when it is shut down: after Close some of its goroutines still wait for an
// answer, without touching the mesh, the journal or the transport, for at most Linger. Tests in a synctest bubble sleep that long
// before they end.
package gossip
