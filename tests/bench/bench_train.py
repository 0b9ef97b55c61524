"A training step by the learner over one of a bare PyTorch loop: same network, batches, loss and kind of optimiser."
import numpy as np, pytest, torch
from clock import say, seconds
from specnb.learn.data import Augment, loaders
from specnb.learn.train import label_loss, learner
from specnb.models.mlp import MLP
from specnb.physics.survey import simulate

N, BS = 8192, 512


@pytest.fixture(scope='module')
def stars(): return simulate('lamost', N, seed=1).normalise(width=50.)


def network():
    torch.manual_seed(0)
    return MLP(mean=[5200, 3.3, -.5, .12], std=[600, 1.1, .6, .14])


def bare(model, dl):
    "One epoch"
    opt = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=.01)
    model.train()
    def epoch():
        for x, y in dl:
            loss = label_loss(model(x), y)
            loss.backward()
            opt.step()
            opt.zero_grad()
    return epoch


def by_learner(model, dls):
    "One epoch without validation, of a fit that goes on"
    learn = learner(model, dls)
    def epoch():
        with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    learn.dls.valid.rows = learn.dls.valid.rows[:0]
    return epoch


@pytest.mark.parametrize('augment', [None, Augment()], ids=['plain', 'augmented'])
def bench_step(stars, augment):
    rows = np.arange(N)
    dls = loaders(stars, network(), rows[64:], rows[:64], BS, augment)
    steps = len(dls.train)
    load = seconds(lambda: [None for _ in dls.train])
    runs = dict(bare=bare(network(), dls.train), learner=by_learner(network(), dls))
    best = dict.fromkeys(runs, float('inf'))
    for _ in range(4):                                                            # in turn, so that both meet the same machine
        for k, f in runs.items(): best[k] = min(best[k], seconds(f, 1))
    say(f'training step, batch {BS}, {"augmented" if augment else "plain"} (ms)',
        f'{best["learner"]/steps*1e3:.1f}; bare loop {best["bare"]/steps*1e3:.1f} (ratio {best["learner"]/best["bare"]:.2f}); of both the loader {load/steps*1e3:.1f}')
