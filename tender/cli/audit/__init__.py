"""`tender audit`: what an image is made of and can do.

command.py       the words of the command, directories, and what is printed
image.py         all that is found in one image, as plain data
instructions.py  instructions of interest in its code
components.py    libraries and compilers in it, and their versions
policy.py        `--require NAME>=VERSION`
"""
