"""The parts of kvmbox, each of one concern; standard library only, so any system python3 runs it.

cli ── what was asked, exit status          cache ──── where built things lie; locks; pruning
 ├─ kernel ──── package, modules, vmlinux   signals ── INT, TERM, HUP and the overall time limit
 ├─ initramfs ─ init.c + modules            channel ── frames to and from init.c
 ├─ machine ─── QEMU and virtiofsd          job ────── one command, its streams and its end
 └─ snapshot ── save, resume
"""
