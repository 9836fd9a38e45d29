// Package place decides where replicas and arbiters go. It reads the rules of administrators, chooses the nodes of a new
// disk, chooses the arbiters of its quorum record, and says how a rule and what is true differ, and why.
//
// It is pure: all it knows of the mesh is in its arguments, and equal arguments give equal answers.
package place
