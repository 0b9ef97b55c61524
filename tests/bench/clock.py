"Timing for the benches: a figure and what it is compared with come from the same run."
import gc, time


def seconds(f, repeat: int = 3) -> float:  # the best of a few
    "Time of a call"
    best = float('inf')
    for _ in range(repeat):
        gc.collect()
        start = time.perf_counter()
        f()
        best = min(best, time.perf_counter() - start)
    return best


def say(what: str, value: str): print(f'\n{what:<58} {value}', end='', flush=True)
