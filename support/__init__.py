"""What the six essays (the files one folder up) rest on; a reader of the paper may skip it all.

    devices.py        CPU, CUDA, MPS, XLA, torchrun: where tensors go and how a step ends
    data_parallel.py  one network, trained by the processes of torchrun
    kernels.py        faster equivalents of textbook operations; ranking.py: that of the selection
    images.py         sets of images; decoding and recognising files
    folders.py        which files of a folder are images, and of which class
    datasets.py       the four sets of the method: split, read, cleared of held-out images
    sources.py        where they come from: folders, torchvision, the demo
    demo_images.py    the demo's pictures, drawn from random numbers
    reading.py        the one reader of batches; opening each image; applying a function to all
    batches.py        the order of images, micro-batches, random numbers per image
    optimization.py   RMSProp, the average of the weights, the best average
    names.py          the file names of a large pool, memory-mapped
    files.py          files written whole, and whether they belong to the settings at hand
    runs.py           a training: finished, resumed, saved, logged
    label_store.py    the folder of pseudo labels that many processes fill
    predictions.py    tables of predictions and of pseudo labels, for people
    weights.py        files of weights, and what other libraries call each weight
    plans.py          the generations of the small plans, and why they are as they are
    outline.py        what a loop will do: its phases, images and hours
    advice.py         warnings as soon as a fault is known
    cli.py            command lines from dataclasses; errors as one line
    report.py         the tables at the end of a loop; picture.py: its curves, bars and images
    archives.py       the released robustness sets; scores.py: what a network scores on them
    corruptions.py    corrupted images and moving views, made on the fly
    no_package.py     what `pip install .` says

None of them imports an essay.
"""

import os

if os.name != "posix":
    raise SystemExit("These scripts need Linux, or macOS; on Windows: WSL")


class InputError(ValueError):
    """What the user gave cannot be used. One line: what is wrong, where, and what to do."""
