//! Models that a worker serves or a request waits for. Others are not kept: clients may name anything.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Index, IndexMut};
use std::sync::Arc;

use slab::Slab;

use super::placement::Pool;
use super::queue::Queue;

/// Position of a model in [`Models`].
pub(super) type ModelIx = usize;

/// Holds the workers that serve any model, and the floors of models that are not kept.
pub(super) const ANY: ModelIx = 0;

/// The name by which a worker says that it serves any model.
const WILDCARD: &str = "*";

#[derive(Debug)]
pub(super) struct Model {
    pub(super) name: Arc<str>,
    pub(super) pool: Pool,
    pub(super) queue: Queue,
    /// How many workers list it by name and take new requests.
    pub(super) listed: usize,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Models {
    by_name: BTreeMap<Arc<str>, ModelIx>,
    models: Slab<Model>,
    waited_for: BTreeSet<ModelIx>,
}

impl Models {
    pub(super) fn new() -> Self {
        let mut models = Slab::new();
        let any = models.insert(Model {
            name: WILDCARD.into(),
            pool: Pool::empty(),
            queue: Queue::default(),
            listed: 0,
        });
        assert_eq!(any, ANY, "a slab counts from 0");
        Self { by_name: BTreeMap::new(), models, waited_for: BTreeSet::new() }
    }

    pub(super) fn find(&self, name: &str) -> Option<ModelIx> {
        self.by_name.get(name).copied()
    }

    pub(super) fn ensure(&mut self, name: &Arc<str>) -> ModelIx {
        if let Some(index) = self.find(name) {
            return index;
        }
        let queue = self.models[ANY].queue.successor();
        let model = Model { name: name.clone(), pool: Pool::empty(), queue, listed: 0 };
        let index = self.models.insert(model);
        self.by_name.insert(name.clone(), index);
        index
    }

    /// Forgets a model that nobody lists and nothing waits for.
    pub(super) fn prune(&mut self, index: ModelIx) {
        let model = &self.models[index];
        if index == ANY || model.listed > 0 || model.pool.serving(false) > 0 || !model.queue.is_empty() {
            return;
        }
        let model = self.models.remove(index);
        self.by_name.remove(&model.name);
        self.models[ANY].queue.inherit(&model.queue);
    }

    /// Resolves the names a worker sent to the pools it belongs in and the models it lists.
    pub(super) fn resolve(&mut self, names: &[Arc<str>]) -> (Vec<ModelIx>, Vec<ModelIx>) {
        let named: BTreeSet<&Arc<str>> = names.iter().filter(|name| &***name != WILDCARD).collect();
        let lists: Vec<ModelIx> = named.into_iter().map(|name| self.ensure(name)).collect();
        let any = names.iter().any(|name| &**name == WILDCARD);
        (if any { vec![ANY] } else { lists.clone() }, lists)
    }

    /// The pools whose workers serve a model, which need not be known.
    pub(super) fn pools(&self, model: Option<ModelIx>) -> [&Pool; 2] {
        static NOBODY: Pool = Pool::empty();
        [model.map_or(&NOBODY, |model| &self.models[model].pool), &self.models[ANY].pool]
    }

    /// How many workers serve a model that can take such a request.
    pub(super) fn serving(&self, model: Option<ModelIx>, needs_streams: bool) -> usize {
        self.pools(model).into_iter().map(|pool| pool.serving(needs_streams)).sum()
    }

    /// Keeps the list of models that have a queue up to date.
    pub(super) fn note_queue(&mut self, index: ModelIx) {
        if self.models[index].queue.is_empty() {
            self.waited_for.remove(&index);
        } else {
            self.waited_for.insert(index);
        }
    }

    /// Models that requests wait for.
    pub(super) fn waited_for(&self) -> impl Iterator<Item = ModelIx> {
        self.waited_for.iter().copied()
    }

    /// Models in order of their names.
    pub(super) fn by_name(&self) -> impl Iterator<Item = &Model> {
        self.by_name.values().map(|&index| &self.models[index])
    }
}

impl Index<ModelIx> for Models {
    type Output = Model;

    fn index(&self, index: ModelIx) -> &Model {
        &self.models[index]
    }
}

impl IndexMut<ModelIx> for Models {
    fn index_mut(&mut self, index: ModelIx) -> &mut Model {
        &mut self.models[index]
    }
}
