"""The catalogue's titles as a radix trie over tokens, stored as flat arrays.

Only *decisions* are nodes: a run of tokens that leaves no choice is the label of one edge, so the
search takes no model step for it. Nodes are numbered level by level with the children of a node next
to each other, hence edge `e` leads to node `e + 1` and needs no array of its own. Leaves are numbered
in depth-first order, so the leaves below any node are one interval, and whether a filter leaves
anything alive below it is two binary searches.

Every title ends with the separator, which occurs nowhere else in it: no path is a prefix of another,
and a leaf never has children. Items that share a token path share a leaf, most popular first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from recommender.errors import CatalogueError

# N nodes, E = N - 1 edges, L leaves, I items, T label tokens, D tokens of the longest path.
Int32Array = npt.NDArray[np.int32]


@dataclass(frozen=True)
class TitleTrie:
    """The trie's arrays.

    Attributes:
        child_offsets: (N + 1,) node n's children are the nodes `child_offsets[n] + 1 …
            child_offsets[n + 1]`; none: a leaf.
        label_offsets: (N + 1,) node n's label, the tokens from its parent to it, is
            `label_tokens[label_offsets[n]:label_offsets[n + 1]]`; the root's is empty.
        label_tokens: (T,) token ids.
        leaf_start: (N,) and leaf_stop: (N,) the half-open interval of leaves below each node.
        item_offsets: (L + 1,) and items: (I,) leaf l bears the items
            `items[item_offsets[l]:item_offsets[l + 1]]`, most popular first.
    """

    child_offsets: Int32Array
    label_offsets: Int32Array
    label_tokens: Int32Array
    leaf_start: Int32Array
    leaf_stop: Int32Array
    item_offsets: Int32Array
    items: Int32Array

    @classmethod
    def build(cls, paths: Sequence[Sequence[int]], popularity: Sequence[int]) -> TitleTrie:
        """Builds the trie of `paths[i]`, item i's tokens with the separator last.

        Raises:
            CatalogueError: a path is empty, or is the beginning of another.
        """
        if not paths:
            return cls(*(np.zeros(size, np.int32) for size in (2, 2, 0, 1, 1, 1, 0)))
        tokens_ID, length_I = _padded(paths)
        order = np.lexsort((-np.asarray(popularity), *tokens_ID.T[::-1]))
        tokens_ID, length_I = tokens_ID[order], length_I[order]
        shared_I = _shared_with_next(tokens_ID)
        _refuse_prefixes(shared_I, length_I, order)
        last_of_leaf = np.flatnonzero(shared_I < length_I)
        leaves_LD, length_L = tokens_ID[last_of_leaf], length_I[last_of_leaf]
        nodes = _inner_and_leaf_nodes(shared_I[last_of_leaf], length_L)
        return cls(
            **_flatten(nodes, leaves_LD),
            item_offsets=np.concatenate(([0], last_of_leaf + 1)).astype(np.int32),
            items=order.astype(np.int32),
        )

    @property
    def node_count(self) -> int:
        return len(self.leaf_start)

    @property
    def leaf_count(self) -> int:
        return len(self.item_offsets) - 1

    @property
    def longest_path(self) -> int:
        """Tokens of the longest title, its separator included; 0 without titles."""
        depth_N = np.diff(self.label_offsets)
        first, stop = 0, 1  # of a level; its nodes' children are the next one
        while first < stop:
            first, stop = int(self.child_offsets[first]) + 1, int(self.child_offsets[stop]) + 1
            depth_N[first:stop] += depth_N[self._parents[first:stop]]
        return int(depth_N.max())

    @property
    def nbytes(self) -> int:
        return sum(getattr(self, field.name).nbytes for field in fields(self))

    def children(self, node: int) -> range:
        """The node's children; empty for a leaf."""
        return range(int(self.child_offsets[node]) + 1, int(self.child_offsets[node + 1]) + 1)

    def label(self, node: int) -> Int32Array:
        """The tokens from the node's parent to it; the first one is the decision."""
        return self.label_tokens[self.label_offsets[node] : self.label_offsets[node + 1]]

    def path(self, leaf: int) -> tuple[int, ...]:
        """The leaf's whole token path, the separator last."""
        labels = []
        node = int(self._node_of_leaf[leaf])
        while node > 0:
            labels.append(self.label(node))
            node = int(self._parents[node])
        return tuple(np.concatenate(labels[::-1]).tolist())

    @cached_property
    def _parents(self) -> Int32Array:
        counts = np.diff(self.child_offsets)
        return np.concatenate(([-1], np.repeat(np.arange(len(counts)), counts))).astype(np.int32)

    @cached_property
    def _node_of_leaf(self) -> Int32Array:
        childless = np.flatnonzero(np.diff(self.child_offsets) == 0)
        node_L = np.empty(self.leaf_count, np.int32)
        node_L[self.leaf_start[childless]] = childless
        return node_L

    def items_of(self, leaf: int) -> Int32Array:
        """The items that bear the leaf's title, most popular first."""
        return self.items[self.item_offsets[leaf] : self.item_offsets[leaf + 1]]

    def leaf_of_items(self) -> Int32Array:
        """(I,) the leaf of every item."""
        leaf_I = np.empty(len(self.items), np.int32)
        leaf_I[self.items] = np.repeat(
            np.arange(self.leaf_count, dtype=np.int32), np.diff(self.item_offsets)
        )
        return leaf_I

    def save(self, path: Path) -> None:
        """Writes the arrays as safetensors."""
        save_file({field.name: getattr(self, field.name) for field in fields(self)}, path)

    @classmethod
    def load(cls, path: Path) -> TitleTrie:
        """Reads what `save` wrote.

        Raises:
            CatalogueError: the file is no safetensors file, or lacks an array.
        """
        try:
            arrays: dict[str, Any] = load_file(path)
            return cls(**{field.name: arrays[field.name] for field in fields(cls)})
        except (OSError, SafetensorError, KeyError) as error:
            raise CatalogueError(f"{path}: not a trie ({error}); export the artifact again") from error


@dataclass(frozen=True)
class _Nodes:
    """Nodes in the order found: parent (-1: the root's), depth in tokens, first leaf below."""

    parent: Int32Array
    depth: Int32Array
    first_leaf: Int32Array


def _padded(paths: Sequence[Sequence[int]]) -> tuple[Int32Array, Int32Array]:
    """The paths as one matrix, -1 behind their ends, and their lengths."""
    length_I = np.fromiter((len(path) for path in paths), np.int32, len(paths))
    if not length_I.all():
        item = int(np.flatnonzero(length_I == 0)[0])
        raise CatalogueError(f"item {item} has no tokens; give it a title")
    tokens_ID = np.full((len(paths), int(length_I.max())), -1, np.int32)
    flat = np.fromiter((t for path in paths for t in path), np.int32, int(length_I.sum()))
    tokens_ID[np.arange(tokens_ID.shape[1]) < length_I[:, None]] = flat
    return tokens_ID, length_I


def _shared_with_next(tokens_ID: Int32Array) -> Int32Array:
    """(I,) how many tokens each sorted path shares with the next one; the last shares none."""
    shared_I = np.zeros(len(tokens_ID), np.int32)
    alike = np.ones(len(tokens_ID) - 1, bool)
    for depth in range(tokens_ID.shape[1]):
        column = tokens_ID[:, depth]
        alike &= (column[:-1] == column[1:]) & (column[:-1] >= 0)
        if not alike.any():
            break
        shared_I[:-1] += alike
    return shared_I


def _refuse_prefixes(shared_I: Int32Array, length_I: Int32Array, order: npt.NDArray[np.int64]) -> None:
    continued = np.flatnonzero((shared_I[:-1] == length_I[:-1]) & (length_I[1:] > length_I[:-1]))
    if len(continued):
        raise CatalogueError(
            f"item {order[continued[0] + 1]}: its tokens go on past the end of item "
            f"{order[continued[0]]}'s; every path must end with the separator and bear no other"
        )


def _inner_and_leaf_nodes(shared_L: Int32Array, length_L: Int32Array) -> _Nodes:
    """The radix tree of sorted, distinct, prefix-free paths, by a stack of open inner nodes."""
    parent, depth, first_leaf = [-1], [0], [0]
    stack = [0]
    for leaf, (shared, length) in enumerate(zip(shared_L.tolist(), length_L.tolist(), strict=True)):
        if shared > depth[stack[-1]]:  # it shares more with the next leaf than the open node holds
            parent.append(stack[-1])
            depth.append(shared)
            first_leaf.append(leaf)
            stack.append(len(parent) - 1)
        parent.append(stack[-1])
        depth.append(length)
        first_leaf.append(leaf)
        while depth[stack[-1]] > shared:
            closed = stack.pop()
            if depth[stack[-1]] < shared:  # a wider branch ends here too: it goes in between
                parent.append(stack[-1])
                depth.append(shared)
                first_leaf.append(first_leaf[closed])
                parent[closed] = len(parent) - 1
                stack.append(len(parent) - 1)
    return _Nodes(*(np.array(column, dtype=np.int32) for column in (parent, depth, first_leaf)))


def _flatten(nodes: _Nodes, leaves_LD: Int32Array) -> dict[str, Int32Array]:
    """Renumbers the nodes breadth first, siblings together, and lays their columns out flat."""
    level = np.zeros(len(nodes.parent), np.int32)
    ancestor = nodes.parent.copy()
    while (below_root := ancestor >= 0).any():
        level += below_root
        ancestor = np.where(below_root, nodes.parent[ancestor], -1)
    old = np.lexsort((nodes.first_leaf, level))
    new = np.empty_like(old)
    new[old] = np.arange(len(old))
    parent = np.where(nodes.parent[old] >= 0, new[nodes.parent[old]], -1)
    depth, leaf_start, level = nodes.depth[old], nodes.first_leaf[old], level[old]

    children = np.bincount(parent[1:], minlength=len(parent))
    leaves_below = (children == 0).astype(np.int64)
    for at in range(int(level[-1]), 0, -1):
        here = np.flatnonzero(level == at)
        np.add.at(leaves_below, parent[here], leaves_below[here])

    from_depth = np.concatenate(([0], depth[parent[1:]]))
    label_offsets = np.concatenate(([0], np.cumsum(depth - from_depth)))
    node_of_token = np.repeat(np.arange(len(depth)), depth - from_depth)
    within = np.arange(len(node_of_token)) - label_offsets[node_of_token]
    columns = {
        "child_offsets": np.concatenate(([0], np.cumsum(children))),
        "label_offsets": label_offsets,
        "label_tokens": leaves_LD[leaf_start[node_of_token], from_depth[node_of_token] + within],
        "leaf_start": leaf_start,
        "leaf_stop": leaf_start + leaves_below,
    }
    return {name: column.astype(np.int32) for name, column in columns.items()}
