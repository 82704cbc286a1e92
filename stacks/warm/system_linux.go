package main

import "syscall"

func dup2(from, to int) error { return syscall.Dup3(from, to, 0) }

// diesWithUs has the kernel end a plugin when this process ends, whatever the cause.
func diesWithUs() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
