"""Runs the built module against an empty directory: `muster module build && python3 -m unittest discover tests`."""

import json
import os
import pathlib
import subprocess
import tempfile
import unittest

# The program `muster`; another one than that of the PATH is named by MUSTER.
MUSTER = os.environ.get("MUSTER", "muster")
COMPONENT = pathlib.Path(__file__).parent.parent / "module-name.wasm"


class Module(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.root = pathlib.Path(directory.name)

    def run_module(self, *options):
        """Runs the module below the root; what it said at its end."""
        command = [MUSTER, "module", "try", COMPONENT, "--root", self.root, "--json", *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        self.assertTrue(done.stdout, done.stderr)
        return json.loads(done.stdout.splitlines()[-1])

    def test_the_settings_are_written_as_lines(self):
        self.assertEqual(self.run_module("--set", "jdk=17", "--set", "lang=C")["verdict"], "provisioned")
        self.assertEqual((self.root / "settings.conf").read_text(), "jdk = 17\nlang = C\n")

    def test_a_setting_of_two_lines_is_refused_for_good(self):
        ended = self.run_module("--set", "jdk=1\n7")
        self.assertEqual(ended["verdict"], "refused-never")
        self.assertIn("`jdk`", ended["reason"])


if __name__ == "__main__":
    unittest.main()
