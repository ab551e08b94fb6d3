"""Compares any monitors that run the guest tcp_guest.c, in interleaved rounds.

    bench/tcp_rounds.py --guest GUEST --peer PEER [--rounds N] [--seconds S] NAME=COMMAND...

COMMAND is split as a shell splits it. {guest} and {tap} in it are the guest's file and the interface. In each
round, each command starts a guest, which serves HTTP, then TCP in, then TCP out. Odd rounds use the reverse
order, so that other load of the machine affects all commands. For each command it prints the median and, by
rounds, the ratio to the first command. It makes the interface tb0, so it needs root in a network namespace of
its own: tools/with_net and tools/kvmbox/kvmbox run have one.
"""

import argparse
import shlex
import statistics
import subprocess
import sys

TAP = "tb0"
HOST = "10.9.0.1/24"
LOADS = {"http": ("8", "requests/s"), "in": ("1", "bytes/s"), "out": ("1", "bytes/s")}
END_S = 10


def measured(words: list[str], peer: str, seconds: str) -> dict[str, float]:
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as monitor:
        try:
            values = {
                load: float(subprocess.check_output([peer, load, connections, seconds], text=True))
                for load, (connections, _) in LOADS.items()
            }
        except subprocess.CalledProcessError as error:
            monitor.kill()
            sys.exit(f"{shlex.join(words)}: {error}\n{monitor.communicate()[1]}")
        monitor.terminate()
        try:
            monitor.wait(END_S)
        except subprocess.TimeoutExpired:
            monitor.kill()
            sys.exit(f"{shlex.join(words)}: does not end at SIGTERM within {END_S} s")
    return values


def parsed(arguments: list[str]) -> tuple[argparse.Namespace, dict[str, list[str]]]:
    """The options, and each command's words by its name, with the guest and the interface filled in."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--guest", required=True)
    parser.add_argument("--peer", required=True)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", default="1")
    parser.add_argument("commands", nargs="+", metavar="NAME=COMMAND")
    options = parser.parse_args(arguments)
    commands: dict[str, list[str]] = {}
    for argument in options.commands:
        name, _, command = argument.partition("=")
        if not command:
            parser.error(f"{argument!r} is not NAME=COMMAND")
        commands[name] = [word.format(guest=options.guest, tap=TAP) for word in shlex.split(command)]
    return options, commands


def main() -> None:
    options, commands = parsed(sys.argv[1:])
    subprocess.run(["ip", "tuntap", "add", TAP, "mode", "tap"], check=True)
    try:
        subprocess.run(["ip", "addr", "add", HOST, "dev", TAP], check=True)
        subprocess.run(["ip", "link", "set", TAP, "up"], check=True)
        rounds = []
        for index in range(options.rounds):
            order = list(commands) if index % 2 == 0 else list(commands)[::-1]
            rounds.append({name: measured(commands[name], options.peer, options.seconds) for name in order})
    finally:
        subprocess.run(["ip", "tuntap", "del", TAP, "mode", "tap"], check=True)
    first = next(iter(commands))
    for load, (_, unit) in LOADS.items():
        for name in commands:
            value = statistics.median(values[name][load] for values in rounds)
            ratios = [values[name][load] / values[first][load] for values in rounds]
            each = " ".join(f"{ratio:.2f}" for ratio in ratios)
            print(
                f"{load:5}{name:12}{value:14.0f} {unit:11}{statistics.median(ratios):6.2f} of {first} [{each}]"
            )


if __name__ == "__main__":
    main()
