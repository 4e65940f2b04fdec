"""What `conclave plan` prints starts: every program takes its flags."""
import json
import unittest

import harness


class PlanFlagsTest(harness.IntegrationTest):
    def planned(self, *arguments):
        code, out, errors = harness.conclave("plan", "--json", *arguments)
        self.assertEqual(code, 0, errors)
        return json.loads(out)["commands"]["processes"]

    def test_every_program_takes_its_flags(self):
        plans = [("--config", "qwen3-235b-a22b", "--dtype", "fp8", "--gpu", "h20-96gb", "--gpus",
                  4),
                 ("--config", "qwen3-30b-a3b", "--gpu", "h100"),
                 ("--config", "qwen3-32b", "--gpu", "h100", "--gpus", 2),
                 ("--config", "qwen3-30b-a3b", "--cpu", "--hosts", 2, "--host_memory_gib", 64,
                  "--host_bandwidth_gbs", 200),
                 ("--config", "qwen3-30b-a3b", "--dtype", "int8", "--cpu", "--hosts", 2,
                  "--host_memory_gib", 64, "--host_bandwidth_gbs", 200)]
        for arguments in plans:
            processes = self.planned(*arguments)
            self.assertGreaterEqual(len(processes), 2)
            for process in processes:
                program, *flags = process["argv"]
                # Flags are checked first, with status 2; then there is no such model, status 1.
                run = harness.Program([harness.BIN_DIR / program, *flags])
                self.addCleanup(run.close)
                self.assertEqual(run.wait(), 1, process)

    def test_a_wrong_flag_would_be_seen(self):
        run = harness.Program([harness.BIN_DIR / "conclave-worker", "--model", "MODEL_DIR",
                               "--no_such_flag", "1"])
        self.addCleanup(run.close)
        self.assertEqual(run.wait(), 2)


if __name__ == "__main__":
    unittest.main()
