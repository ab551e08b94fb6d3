"""The script that the installed `tender` gives to `python3 -I -S`: it finds the package beside itself and enters it.

Without `site` the interpreter starts in half the time, but does not know site-packages. This script adds the one
directory that it lies in. A cffi that was installed elsewhere takes longer: `site` finds it in the interpreter's own
directories, and an interpreter that is not isolated finds it in the user's (`pip install --user`) and by PYTHONPATH. If
there is no cffi, tender/cli/needs.py says so. Keep this file small: Python compiles a script at each start.
"""

import sys

if __name__ == "__main__":
    if sys.version_info < (3, 11):  # noqa: UP036  the first of PATH, whatever the package was installed for
        version = "%d.%d" % sys.version_info[:2]  # noqa: UP031  an old Python reads this file
        sys.exit("tender: Python 3.11 or later is needed, but %s is Python %s" % (sys.executable, version))  # noqa: UP031
    sys.setdlopenflags(1)  # RTLD_LAZY: a run needs a third of what the two extensions call
    sys.path.insert(0, __file__.removesuffix("/tender/cli/launch.py"))
    try:
        import _cffi_backend  # noqa: F401  tender._native needs it; nothing else is imported here
    except ImportError:
        if sys.flags.isolated:
            import os
            import site
            from importlib.util import find_spec

            site.main()
            if find_spec("_cffi_backend") is None:
                words = [sys.executable, "-P", "-X", "utf8", __file__, *sys.argv[1:]]
                os.execv(sys.executable, words)
    from tender.cli.main import entry

    entry()
