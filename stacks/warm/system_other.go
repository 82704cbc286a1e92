//go:build !linux

package main

import "syscall"

func dup2(from, to int) error { return syscall.Dup2(from, to) }

// diesWithUs is all that there is elsewhere: plugins notice by themselves that their engine is gone.
func diesWithUs() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
