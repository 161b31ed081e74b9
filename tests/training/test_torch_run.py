"""A run of kdjax equals a run of PyTorch from the same weights on the same batches, also after a learning-rate drop.

Needs torch, which kdjax itself does not: pip install torch.
"""

import jax
import numpy as np
import pytest

from kdjax import models
from kdjax.data import load_dataset, train_batches
from kdjax.inspection.exchange import import_weights
from kdjax.interop import read_weights, write_weights
from kdjax.interop.torch_weights import to_state_dict
from kdjax.store import Store
from kdjax.training.loop import train
from kdjax.training.plan import make_plan, resolve

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")

EPOCHS, STEPS, BATCH, DROP = 8, 25, 16, 6  # 200 batches, the last 50 at a tenth of the rate
T, LABELS, TEACHER, RATE, DECAY = 4.0, 0.1, 0.9, 0.05, 5e-4


class Block(torch.nn.Module):
    def __init__(self, before, after, stride):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(after)
        self.conv2 = torch.nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = torch.nn.BatchNorm2d(after)
        if stride > 1:
            conv = torch.nn.Conv2d(before, after, 1, stride, bias=False)
            self.downsample = torch.nn.Sequential(conv, torch.nn.BatchNorm2d(after))

    def forward(self, x):
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + (self.downsample(x) if hasattr(self, "downsample") else x))


class ResNet(torch.nn.Module):
    def __init__(self, depth, classes):
        super().__init__()
        self.conv1, self.bn1 = torch.nn.Conv2d(3, 16, 3, 1, 1, bias=False), torch.nn.BatchNorm2d(16)
        widths, blocks = (16, 16, 32, 64), (depth - 2) // 6
        for stage in (1, 2, 3):
            before, after = widths[stage - 1], widths[stage]
            first = [Block(before, after, 1 if stage == 1 else 2)]
            layers = first + [Block(after, after, 1) for _ in range(blocks - 1)]
            setattr(self, f"layer{stage}", torch.nn.Sequential(*layers))
        self.fc = torch.nn.Linear(64, classes)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        return self.fc(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


@pytest.fixture
def world(tmp_path, config):
    """Sixteen-pixel images of four classes, and a config that distils resnet8 from an imported resnet20."""
    rng = np.random.default_rng(0)
    labels = np.arange(STEPS * BATCH) % 4
    images = rng.integers(0, 256, (len(labels), 16, 16, 3)).astype(np.uint8)
    images[..., 0] = images[..., 0] // 4 + 40 * labels[:, None, None].astype(np.uint8)
    np.savez(tmp_path / "images.npz", images=images, labels=labels, test_images=images[:16], test_labels=labels[:16])
    config.data.args = {"path": str(tmp_path / "images.npz")}
    config.data.validation, config.data.view = 0.0, "none"
    config.batch_size, config.eval_batch_size, config.epochs = BATCH, 16, EPOCHS
    config.schedule.milestones, config.select = (DROP,), "last"
    config.optimizer.learning_rate, config.optimizer.weight_decay = RATE, DECAY
    config.model.running_variance = "unbiased"
    config.losses = {
        "cross_entropy": {"weight": LABELS},
        "kd": {"weight": TEACHER, "temperature": T},
    }
    config.teachers = {"a": {"run": "imported/teacher"}}
    return config


def torch_run(student, teacher, dataset, seed):
    """Trains `student` in place, in float64, as the papers' code does."""
    optimizer = torch.optim.SGD(student.parameters(), lr=RATE, momentum=0.9, weight_decay=DECAY)
    stored = dataset.stored
    images = (dataset.images.astype(np.float64) * stored.scale - np.array(stored.mean)) / np.array(stored.std)
    images, labels = torch.tensor(np.moveaxis(images, -1, 1)), torch.tensor(dataset.labels).long()
    kl = torch.nn.KLDivLoss(reduction="batchmean")
    for epoch in range(EPOCHS):
        for group in optimizer.param_groups:
            group["lr"] = RATE * (0.1 if epoch + 1 > DROP else 1.0)  # epochs are counted from 1 there
        for rows in train_batches(dataset.splits["train"], seed, epoch, BATCH):
            rows = torch.tensor(np.asarray(rows)).long()
            logits = student(images[rows])
            with torch.no_grad():
                taught = teacher(images[rows])
            distance = kl(torch.log_softmax(logits / T, 1), torch.softmax(taught / T, 1)) * T * T
            loss = LABELS * torch.nn.functional.cross_entropy(logits, labels[rows]) + TEACHER * distance
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def test_200_batches_equal_those_of_torch(world, tmp_path, one_device):
    torch.manual_seed(0)
    teacher, store = ResNet(20, 4).double().eval(), Store(tmp_path / "runs")
    with torch.no_grad():
        for module in teacher.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    torch.save(teacher.state_dict(), tmp_path / "teacher.pth")
    with jax.enable_x64(True):
        import_weights(str(tmp_path / "teacher.pth"), "resnet20", store, name="imported/teacher")
        plan = make_plan(resolve(world), store, "", one_device)
        student = ResNet(8, 4).double()
        start = {key: torch.tensor(value) for key, value in to_state_dict(plan.spec.model, plan.variables).items()}
        student.load_state_dict(start, strict=False)  # all but num_batches_tracked
        train(world, store, name="student", devices=one_device, show=False)
        variables, step = store.find("student").restore_variables("last")
    torch_run(student.train(), teacher, load_dataset(world.data, ""), world.seed)
    assert step == EPOCHS * STEPS
    expected = {key: value.numpy() for key, value in student.state_dict().items() if "num_batches" not in key}
    found = to_state_dict(plan.spec.model, variables)
    assert set(found) == set(expected)
    for key, value in expected.items():
        assert np.abs(value - start[key].numpy()).max() > 1e-3  # it has moved
        np.testing.assert_allclose(found[key], value, rtol=1e-4, atol=1e-4 * np.abs(value).max(), err_msg=key)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_of_torch_comes_back_to_torch_with_the_same_bits_and_logits(legacy, tmp_path):
    torch.manual_seed(1)
    network = ResNet(8, 5)
    with torch.no_grad():
        network.train()(torch.randn(8, 3, 8, 8))  # moves the statistics
    state = {"epoch": 3, "model": torch.nn.DataParallel(network).state_dict(), "accuracy": torch.tensor(0.5)}
    torch.save(state, tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy)
    name, _ = import_weights(str(tmp_path / "a.pth"), "resnet8", store := Store(tmp_path / "runs"))
    variables, _ = store.find(name).restore_variables("last")
    module = models.create_model("resnet8", 5)
    write_weights(tmp_path / "b.npz", to_state_dict(module, variables))
    back = {key: torch.tensor(value) for key, value in read_weights(tmp_path / "b.npz").items()}
    for key, value in network.state_dict().items():
        if "num_batches" not in key:
            assert torch.equal(back[key], value)
    fresh = ResNet(8, 5).eval()
    fresh.load_state_dict(back)  # strict: PyTorch fills in num_batches_tracked by itself
    images = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        expected = fresh(images).numpy()
    logits = module.apply(variables, np.moveaxis(images.numpy(), 1, -1), train=False).logits
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
