"""The parts of kvmbox. Each has one concern. They use only the standard library, so any system python3 runs them.

cli ── options, exit status                  cache ──── where built files are; locks; pruning
 ├─ kernel ──── package, modules, vmlinux    signals ── INT, TERM, HUP and the overall time limit
 ├─ initramfs ─ init.c + modules             channel ── frames to and from init.c
 ├─ tsc ─────── what the VM's clock counts   job ────── one command, its streams and its end
 ├─ machine ─── QEMU and virtiofsd           bochs ──── the Intel test VM, in place of machine
 └─ snapshot ── save, resume                 disc ───── its files
"""
