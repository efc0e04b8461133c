//! The operator: reconciles `ModelRelay` and `WorkerPool` objects into relay Deployments and worker DaemonSets.
//!
//! | module | owns |
//! | --- | --- |
//! | [`api`] | the custom resources and their CRDs |
//! | [`cache`] | the watches and what they told |
//! | [`apply`] | writing children: who owns what, what changed, what is no longer wanted |
//! | [`check`] | asking an address whether it answers, for `helm test` |
//! | [`cli`] | the command line |
//! | [`client_keys`] | Secrets of users as client keys |
//! | [`connection`] | how patient it is with the API server |
//! | [`context`] | what every reconcile is given; deadlines and errors of calls |
//! | [`controller`] | runs both reconcilers: deadlines, attempts, order of start and stop |
//! | [`error`] | why a reconcile did not reach its end |
//! | [`fleet`] | what relays say of their workers |
//! | [`generated`] | secrets that the operator makes |
//! | [`lease`] | which replica acts |
//! | [`model_relay`] | the reconciler of `ModelRelay` |
//! | [`naming`] | names and labels |
//! | [`nudge`] | makes kubelets look at changed settings |
//! | [`ops`] | the operations port |
//! | [`options`] | what the operator was told at start |
//! | [`pod_template`] | a user's pod template over a generated one |
//! | [`rbac`] | what the operator may do |
//! | [`relay_client`] | questions to relays and workers |
//! | `resync` | when what is as it should be is looked at again |
//! | [`triggers`] | what is looked at next |
//! | [`worker_pool`] | the reconciler of `WorkerPool` |
//! | [`metrics`] | what is counted |

pub mod api;
pub mod apply;
pub mod cache;
mod canonical;
pub mod check;
pub mod cli;
pub mod client_keys;
pub mod connection;
pub mod context;
pub mod controller;
pub mod error;
pub mod fleet;
pub mod generated;
pub mod lease;
pub mod metrics;
pub mod model_relay;
pub mod naming;
pub mod nudge;
pub mod ops;
pub mod options;
pub mod pod_template;
pub mod rbac;
pub mod relay_client;
mod resync;
mod same;
pub mod triggers;
pub mod worker_pool;
