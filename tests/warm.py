"""The command `emotion-study` without its imports: each run is a fork of a process that has them.

A line of JSON on its input begins a run; its answer is the number of the process, later its exit
code."""
import json, os, sys
from pathlib import Path


def counted(function, log):
    "A function of something with a path; each call is written down when it begins."
    def calls(path):
        with open(log, 'a') as file: file.write(f'{Path(path).stem}\n')
        return function(path)
    return calls


def become(words, log='', study='', **variables):
    "Be the command, with a group of processes of its own."
    from emotion_study import cli, features
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    os.environ.update(variables)
    cli.have_samples = lambda: False
    if study: cli.STUDY = Path(study)
    if log: features._measured = counted(features._measured, log)
    cli.main(words)


def main():
    import papermill  # noqa: F401
    from emotion_study import cli, figures, predict, site, training  # noqa: F401
    from emotion_study.features import compile_once
    compile_once()
    for line in sys.stdin:
        if not (pid := os.fork()): become(**json.loads(line))
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == '__main__': main()
