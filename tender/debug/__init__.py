"""Looks into a guest from outside: registers, memory, breakpoints, cores, reports.

The debugger does everything and the guest's process does nothing. A running VM registers nowhere, listens on nothing and
has no thread for this. Another process reads and changes it with the kernel's own means, ptrace(2) and
process_vm_readv(2), so the kernel decides who may. Nothing in the path of a run imports this package.

    find.py        which guests a process holds, and where their state lies
    ptrace.py      the kernel's calls
    target.py      what a debugger asks of a guest; sandbox.py and kvm.py serve it, one for each backend
    guard.py       puts back what a debugger that was killed had changed
    gdb_server.py  gdb's remote protocol in front of a target
    core.py        cores: an ELF file of a guest's state
    symbols.py, unwind.py, report.py   what addresses mean, for people
"""
