"""Kill a short training run at random moments, start it again, and compare with one left alone.

    python tests/kill_training.py --kills 20

prints where the run was each time and whether the weights are equal bit for bit.
"""

import argparse
import dataclasses
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]


def train_here(out: str, epochs: float) -> None:
    """The run itself, with a state to resume from after every second step."""
    import tiny

    config, splits = dataclasses.replace(tiny.TINY, epochs=epochs), tiny.make_splits()
    print("started", flush=True)
    tiny.run(config, splits, Path(out), checkpoint_steps=2)


def train_and_kill(out: Path, epochs: float, kills: int, seed: int) -> list[float]:
    """Run until finished; the seconds after its start at which each of `kills` processes died."""
    moments, patience = [], random.Random(seed)
    while not out.exists():
        process = subprocess.Popen([sys.executable, __file__, "--child", str(out), str(epochs)],
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        process.stdout.readline()
        if len(moments) < kills:
            moment = patience.uniform(0, 1.0)
            time.sleep(moment)
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
        _, errors = process.communicate()
        if process.returncode == -signal.SIGKILL:
            moments.append(round(moment, 3))
        elif process.returncode != 0:
            raise RuntimeError(errors[-2000:])
    return moments


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        train_here(arguments.child[0], float(arguments.child[1]))
        return
    import tiny

    with tempfile.TemporaryDirectory() as folder:
        whole, killed, epochs = Path(folder, "whole.pt"), Path(folder, "killed.pt"), 60
        train_and_kill(whole, epochs, 0, arguments.seed)
        moments = train_and_kill(killed, epochs, arguments.kills, arguments.seed)
        equal = tiny.same(tiny.weights(whole), tiny.weights(killed))
    print(f"killed {len(moments)} times, so many seconds after its start: {moments}")
    print("weights equal bit for bit" if equal else "WEIGHTS DIFFER")
    sys.exit(0 if equal and len(moments) == arguments.kills else 1)


if __name__ == "__main__":
    main()
