// Package chaos breaks a mesh of real processes at random, from a seed, and holds what its users see against what UKAI
// guarantees: nodes are killed, frozen, cut off, slowed down, filled up and lose power, and disks get other rules, while programs read and write
// them through several mounts. Every sector written tells which write it is, so a read names the write it saw, and the history of each
// sector is checked for strict linearizability; fio and a virtual machine verify their own writes besides.
//
//	make chaos MINUTES=10 SEED=7
//
// A run consists of episodes, each with new disks. A seed fixes which faults are drawn, not what the processes do meanwhile,
// nor whom those faults hit that are aimed at the node which writes at the moment; so a failure keeps its history and logs under run/chaos.
package chaos
