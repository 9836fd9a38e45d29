// Package pace is the budgets of links, how the bytes of one link are shared among the jobs that want them, and how much is copied beside guests. It is pure: no I/O, no
// clock, no goroutine; time comes in as an argument.
package pace
