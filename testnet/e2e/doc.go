// Package e2e tests whole meshes of real processes as a hypervisor and an administrator use them: real FUSE mounts, loop
// devices, qemu-img, fio and virtual machines. It needs root; see testnet/proc.
package e2e
