// Package pace is the budgets of links, and how the bytes of one link are shared among the jobs that want them. It is pure: no I/O, no
// clock, no goroutine; time comes in as an argument.
package pace
