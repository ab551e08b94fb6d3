"""Watches the guests of a host from outside: which run, what they do, and what they use.

There is no registry and nothing listens in a guest's process. A guest is found and read as a debugger does it
(tender/debug/find.py), by /proc and process_vm_readv(2), and is never stopped. Nothing in the path of a run imports this
package.

    patience.py     looks at many processes, and waits for none of them longer than a limit
    process.py      what /proc says of one process
    running.py      RunningGuest, running(); Watch, for who looks again and again
    trend.py        how memory grows, said only where it is sure
    openmetrics.py  the same as OpenMetrics text; exporter.py serves it
"""
