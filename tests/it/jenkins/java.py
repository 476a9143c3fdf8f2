"""Stands for `java @FILE`: the arguments stay in the file, so that the list of processes shows no more of them than with the real one."""

import runpy
import shlex
import sys

with open(sys.argv[1][1:], encoding="utf-8") as file:
    words = shlex.split(file.read(), comments=True) + sys.argv[2:]
while words and words[0] not in ("-jar", "-cp", "-classpath"):
    words.pop(0)
if len(words) < 2:
    sys.exit("Error: no jar is named")
sys.argv = words[1:]
runpy.run_path(words[1], run_name="__main__")
