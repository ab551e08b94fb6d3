"""The parts of kvmbox, each of one concern; standard library only, so any system python3 runs it.

cli ── what was asked, exit status          cache ──── where built things lie; locks; pruning
 ├─ kernel ──── package, modules, vmlinux   signals ── INT, TERM, HUP and the overall time limit
 ├─ initramfs ─ init.c + modules            channel ── frames to and from init.c
 ├─ tsc ─────── what the VM's clock counts job ────── one command, its streams and its end
 ├─ machine ─── QEMU and virtiofsd
 └─ snapshot ── save, resume
"""
