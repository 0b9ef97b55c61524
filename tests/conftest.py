"What the tests share."
import os, sys
from pathlib import Path
import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/'tools'))

# the same examples on every run of the continuous integration; new ones, any of which may find something, on a desk
settings.register_profile('ci', derandomize=True, deadline=None)
if os.environ.get('CI'): settings.load_profile('ci')


@pytest.fixture(scope='session')
def shared_data() -> Path:
    "The folder of real spectra; they are no part of the project, so a test that needs them skips where they are absent."
    path = Path(os.environ.get('SPECNB_SHARED_DATA') or ROOT.parent/'shared'/'data')
    if not path.is_dir(): pytest.skip('no real spectra here: SPECNB_SHARED_DATA names their folder')
    return path


@pytest.fixture(autouse=True)
def plain_text_in_figures():
    "GaiaXPy turns on TeX for all figures when it is imported; specnb puts that back, tests that import it themselves are helped here"
    yield
    if 'gaiaxpy' in sys.modules and 'matplotlib' in sys.modules: sys.modules['matplotlib'].rcParams['text.usetex'] = False
