"""What the installed `tender` hands to `python3 -I -S`: finds the package beside itself and enters it.

Without `site` the interpreter starts in half the time, but knows no site-packages: this adds the one
directory that this file lies in. A cffi that was installed elsewhere needs `site` after all. Keep this
file small: a script is compiled anew at each start.
"""

import sys

if __name__ == "__main__":
    sys.setdlopenflags(1)  # RTLD_LAZY: of what the two extensions call, a run needs a third
    sys.path.insert(0, __file__.removesuffix("/tender/cli/launch.py"))
    try:
        import _cffi_backend  # noqa: F401  tender._native needs it; nothing else may be asked for here
    except ImportError:
        import site

        site.main()
    from tender.cli.main import entry

    entry()
