// Package node is one ukai-node: it wires the rooms together - store, wire, gossip, cells, volumes - and runs the
// background loops. It decides little itself: what may be written is decided in volume and cell, where replicas go in place,
// what everybody knows in gossip. It implements admin.Backend.
package node
