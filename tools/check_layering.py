#!/usr/bin/env python3
"""Fails when an #include points against the arrows of docs/architecture.md.

Usage: check_layering.py SOURCE_DIR
"""
import pathlib
import re
import sys

# folder -> folders it may include besides itself
ALLOWED = {
    "proto": set(),
    "common": set(),
    "rpc": {"proto", "common"},
    "text": {"common"},
    "model": {"common"},
    "kernels": {"common"},
    "expert_shard": {"proto", "common", "rpc", "model", "kernels"},
    "worker": {"proto", "common", "rpc", "model", "kernels"},
    "router": {"proto", "common", "rpc", "text", "model"},
    "client": {"proto", "common", "rpc", "text", "model"},
}
# single headers that cross an arrow on purpose
EXCEPTIONS = {
    ("worker", "expert_shard/cuda/cuda_experts.h"),
    ("worker", "expert_shard/cuda/device_weights.h"),
    ("worker", "expert_shard/cuda/memory_budget.h"),
    ("worker", "expert_shard/cuda/open_cuda_experts.h"),
    ("worker", "expert_shard/expert_runner.h"),
    ("worker", "expert_shard/shard_host.h"),
    ("worker", "expert_shard/weight_loader.h"),
    ("worker", "text/vocabulary.h"),
}
CUDA_HEADER = re.compile(r"^(cuda|cublas|nccl)")
INCLUDE = re.compile(r'^\s*#\s*include\s+["<]([^">]+)[">]')


def violations(root: pathlib.Path):
    for folder, allowed in ALLOWED.items():
        for path in sorted((root / folder).rglob("*")):
            if path.suffix not in {".h", ".cc", ".cu", ".cuh"}:
                continue
            for number, line in enumerate(path.read_text().splitlines(), start=1):
                match = INCLUDE.match(line)
                if not match:
                    continue
                target = match.group(1)
                where = f"{path.relative_to(root)}:{number}"
                if CUDA_HEADER.match(target) and folder not in {"kernels", "rpc"}:
                    yield f"{where}: {target}: CUDA is used only inside kernels/ and rpc/"
                head = target.split("/")[0]
                if head == "tests":
                    yield f"{where}: {target}: nothing but tests includes tests/"
                if head in ALLOWED and head != folder and head not in allowed:
                    if (folder, target) not in EXCEPTIONS:
                        yield f"{where}: {target}: {folder}/ may not include {head}/"


def main() -> int:
    found = list(violations(pathlib.Path(sys.argv[1])))
    print("\n".join(found) if found else "layering: every include follows the arrows")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
