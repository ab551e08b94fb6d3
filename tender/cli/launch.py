"""What the installed `tender` hands to `python3 -I -S`: finds the package beside itself and enters it.

Without `site` the interpreter starts in half the time, but knows no site-packages: this adds the one directory that
this file lies in. A cffi that was installed elsewhere takes longer: `site` finds it in the interpreter's own
directories, and an interpreter that is not isolated also in the user's (`pip install --user`) and by PYTHONPATH. Where
there is none, tender/cli/needs.py says so. Keep this file small: a script is compiled anew at each start.
"""

import sys

if __name__ == "__main__":
    sys.setdlopenflags(1)  # RTLD_LAZY: of what the two extensions call, a run needs a third
    sys.path.insert(0, __file__.removesuffix("/tender/cli/launch.py"))
    try:
        import _cffi_backend  # noqa: F401  tender._native needs it; nothing else may be asked for here
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
