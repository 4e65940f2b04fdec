"""The demo's own steps, with the binaries of this build."""
import unittest

from harness import BIN_DIR, SOURCE_DIR, IntegrationTest, Program


class DemoTest(IntegrationTest):
    def test_every_answer_is_what_it_should_be(self):
        demo = Program([SOURCE_DIR / "tools" / "demo.sh", BIN_DIR, SOURCE_DIR / "models" / "demo"])
        self.addCleanup(demo.close)
        self.assertEqual(demo.wait(600), 0, demo.errors + demo.lines)
        self.assertIn("Conclave has stopped.", demo.lines)
        self.assertNotIn("\x1b", "".join(demo.lines))


if __name__ == "__main__":
    unittest.main()
