"A million embeddings of 96 numbers: building the index, and the ten nearest of queries alone and in batches, beside scikit-learn."
import numpy as np, pytest
from astropy.table import Table
from clock import say, seconds
from specnb.science.search import build_index

N, WIDTH = 1_000_000, 96


@pytest.fixture(scope='module')
def index(tmp_path_factory):
    x, folder = np.random.default_rng(0).standard_normal((N, WIDTH), dtype=np.float32), tmp_path_factory.mktemp('search')/'index'
    table, made = Table(dict(target_id=np.arange(N))), []
    t = seconds(lambda: made.append(build_index(x, folder, table=table)), 1)
    say(f'search, an index of {N:,} x {WIDTH} built (s)', f'{t:.1f}; {made[0].vectors.nbytes/1e6:,.0f} MB')
    return made[0]


@pytest.mark.parametrize('n', [1, 16, 128])
def bench_search(index, n):
    "From vectors to a table with ids; the file is in the system's cache after the first round"
    q = np.random.default_rng(1).standard_normal((n, WIDTH), dtype=np.float32)
    t = seconds(lambda: index.search(q, 10), 20 if n == 1 else 3)
    say(f'search, {n} {"query" if n == 1 else "queries at once"}, k=10 (ms a query)', f'{t/n*1e3:.1f}')


def bench_plain(index):
    "scikit-learn's own brute force, in memory"
    from sklearn.neighbors import NearestNeighbors
    brute, q = NearestNeighbors(n_neighbors=10, algorithm='brute', metric='cosine').fit(np.array(index.vectors)), np.random.default_rng(1).standard_normal((16, WIDTH), dtype=np.float32)
    one, some = seconds(lambda: brute.kneighbors(q[:1]), 2), seconds(lambda: brute.kneighbors(q), 2)
    say('search, by scikit-learn (ms a query)', f'{one*1e3:.0f} alone, {some/16*1e3:.0f} among 16')
