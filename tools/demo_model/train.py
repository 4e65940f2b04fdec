"""Trains the demo model and writes a Hugging Face checkpoint.

    python tools/demo_model/train.py --out models/demo --minutes 40

Training length is given in minutes (the schedule follows the clock, so a busy machine gives fewer
steps, not a cut-off schedule) or in steps (repeatable).
"""

import argparse
import json
import math
import os
import random
import time
from dataclasses import asdict
from pathlib import Path

if __name__ == "__main__" and "MALLOC_TRIM_THRESHOLD_" not in os.environ:
    # glibc gives every large tensor back to the kernel and faults it in again; keeping the pages is
    # about 15 % faster. It must be set before the process starts.
    os.environ.update(MALLOC_MMAP_THRESHOLD_=str(2**33), MALLOC_TRIM_THRESHOLD_=str(2**34),
                      MALLOC_TOP_PAD_=str(2**28))
    os.execv(os.sys.executable, [os.sys.executable, *os.sys.argv])

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from tokenizers import Tokenizer

import batches
import export
import mixture
import model as demo_model
import tokenizer_builder
from optimizer import MuonAdamW


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, default=40.0)
    length.add_argument("--steps", type=int)
    parser.add_argument("--lr", type=float, default=2.5e-3)
    parser.add_argument("--decay_share", type=float, default=0.3, help="last share of it: lr decays")
    parser.add_argument("--tokens_per_batch", type=int, default=4096, help="of all processes together")
    parser.add_argument("--merges", type=int, default=980)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=2, help="data-parallel, one thread each")
    parser.add_argument("--resume", type=Path,
                        help="go on from an earlier run: its state, or the folder of its checkpoint")
    parser.add_argument("--state", type=Path, help="where to keep the FP32 training weights")
    parser.add_argument("--port", type=int, default=29531, help="where the processes meet")
    parser.add_argument("--no_compile", action="store_true")
    return parser.parse_args()


WARM_UP_STEPS = 100


class Schedule:
    """Progress 0..1 by steps or by the clock. Learning rate: warm-up, level, then linear to 2 %."""

    def __init__(self, args):
        self.args, self.start, self.step = args, time.time(), 0

    def progress(self) -> float:
        if self.args.steps:
            return self.step / self.args.steps
        return (time.time() - self.start) / (60 * self.args.minutes)

    def learning_rate(self, progress: float) -> float:
        decay = max(0.02, min(1.0, (1 - progress) / self.args.decay_share))
        return self.args.lr * decay * min(1.0, (self.step + 1) / WARM_UP_STEPS)


class Average:
    """Moving average of the weights: a usable model at any time before the learning rate decays."""

    def __init__(self, network, keep: float = 0.99):
        self._network, self._keep = network, keep
        self._mean = [p.detach().clone() for p in network.parameters()]

    def update(self) -> None:
        torch._foreach_lerp_(self._mean, [p.detach() for p in self._network.parameters()], 1 - self._keep)

    def state_dict(self) -> dict:
        return dict(zip((name for name, _ in self._network.named_parameters()), self._mean))


def held_out_batches(tokenizer):
    """Per number of operands, 40 held-out problems with thinking; a quick progress measure."""
    rng = random.Random(99)
    return {n: [torch.from_numpy(array) for array in batches.encode_all(
        tokenizer, [mixture.sample_arithmetic(rng, held_out=True, num_operands=n, follow_up=False)
                    for _ in range(40)])] for n in (2, 4, 6)}


class GradientSum:
    """Averages the gradients of all processes, and tells all of them rank 0's progress."""

    def __init__(self, network, processes: int):
        self._params, self._processes = list(network.parameters()), processes
        self._flat = torch.zeros(sum(p.numel() for p in self._params) + 1)
        self._views, start = [], 0
        for p in self._params:
            self._views.append(self._flat[start : start + p.numel()].view_as(p))
            start += p.numel()

    def exchange(self, progress: float) -> float:
        for p, view in zip(self._params, self._views):
            view.copy_(p.grad)
            p.grad = view
        self._flat[-1] = progress if dist.get_rank() == 0 else 0.0
        dist.all_reduce(self._flat)
        progress = self._flat[-1].item()
        self._flat /= self._processes
        self._flat[-1] = 0.0
        return progress


def report(network, schedule, progress_batches, num_tokens, loss, balance) -> None:
    exact = {n: round(network.exact_share(*batch), 3) for n, batch in progress_batches.items()}
    minutes = (time.time() - schedule.start) / 60
    print(f"{minutes:5.1f} min step {schedule.step} tokens {num_tokens / 1e6:.1f}M "
          f"{num_tokens / minutes / 60e3:.1f}k/s loss {loss:.4f} balance {balance:.3f} exact {exact}",
          flush=True)


def save_state(args, network, average) -> None:
    if args.state:
        torch.save({"weights": network.state_dict(), "average": average.state_dict()}, args.state)


def run(rank: int, args, tokenizer_text: str) -> None:
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{args.port}", rank=rank,
                            world_size=args.processes)
    tokenizer = Tokenizer.from_str(tokenizer_text)
    config = demo_model.ModelConfig(vocab_size=64 * math.ceil(tokenizer.get_vocab_size() / 64))
    if rank == 0:
        tokenizer_builder.save(tokenizer, args.out, config.max_position_embeddings)
        print(f"vocabulary {tokenizer.get_vocab_size()}", flush=True)
    network = demo_model.DemoModel(config)
    if args.resume and args.resume.is_dir():
        export.read_checkpoint(network, args.resume)
    elif args.resume:
        network.load_state_dict(torch.load(args.resume)["weights"])
    progress_batches = held_out_batches(tokenizer)
    if not args.no_compile:
        demo_model.enable_compile()
    optimizer, schedule = MuonAdamW(network), Schedule(args)
    source = batches.BatchSource(tokenizer, args.tokens_per_batch // args.processes,
                                 args.seed * 100 + rank)
    gradients, average = GradientSum(network, args.processes), Average(network)
    num_tokens, running, progress, last_report = 0, None, 0.0, time.time()
    while progress < 1:
        source.max_operands.value = 6 if args.resume or progress > 0.12 else 4
        ids, targets = (torch.from_numpy(array) for array in source.next())
        lr = schedule.learning_rate(progress)
        network.zero_grad(set_to_none=True)
        loss, balance = network.loss(ids, targets)
        (loss + 0.01 * balance).backward()
        progress = gradients.exchange(schedule.progress())
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step(lr)
        average.update()
        num_tokens += ids.numel() * args.processes
        schedule.step += 1
        running = loss.item() if running is None else 0.98 * running + 0.02 * loss.item()
        if rank == 0 and schedule.step % 20 == 0 and time.time() - last_report > 90:
            last_report = time.time()
            report(network, schedule, progress_batches, num_tokens, running, balance)
            save_state(args, network, average)
    source.close()
    if rank == 0:
        report(network, schedule, progress_batches, num_tokens, running, balance)
        save_state(args, network, average)
        export.write_checkpoint(network, tokenizer, args.out)
        facts = {"steps": schedule.step, "tokens": num_tokens, "final_loss": round(running, 4),
                 "minutes": round((time.time() - schedule.start) / 60, 1),
                 "processes": args.processes, "torch": torch.__version__, "config": asdict(config)}
        print(json.dumps(facts), flush=True)
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    args = parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.resume:
        folder = args.resume if args.resume.is_dir() else args.out
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    else:
        tokenizer = tokenizer_builder.build(args.merges)
    mp.spawn(run, (args, tokenizer.to_str()), nprocs=args.processes)


if __name__ == "__main__":
    main()
