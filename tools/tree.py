"A copy of the working tree to check and build in, so that no check ever changes the tree it looks at."
import shutil, subprocess, tempfile
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LEFT_OUT = {'.git', '_proc', '_docs', 'build', 'dist', 'demo', 'data', '__pycache__', '.ipynb_checkpoints', '.pytest_cache', '.hypothesis'}


def files(
    root: Path = ROOT,  # the tree
) -> list[Path]:  # relative paths, sorted
    "Every file that git tracks or would offer to add; without git, every file but the built ones"
    cmd = ['git', '-C', str(root), 'ls-files', '-z', '--cached', '--others', '--exclude-standard']
    try: found = [Path(o) for o in subprocess.run(cmd, check=True, capture_output=True).stdout.decode().split('\0') if o]
    except (OSError, subprocess.CalledProcessError):
        found = [o.relative_to(root) for o in root.rglob('*')]
        found = [o for o in found if not any(p in LEFT_OUT or p.startswith('.venv') or p.endswith('.egg-info') for p in o.parts)]
    return sorted({o for o in found if (root/o).is_symlink() or (root/o).is_file()})


@contextmanager
def copy(
    root: Path = ROOT,  # the tree
    skip: tuple = ('data',),  # top folders that no check reads
):
    "A temporary copy of the tree's `files`, as they are now on disk"
    with tempfile.TemporaryDirectory(prefix='specnb-') as tmp:
        dest = Path(tmp).resolve()/'specnb'
        for o in files(root):
            if o.parts[0] in skip: continue
            (dest/o).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root/o, dest/o, follow_symlinks=False)
        yield dest
