//! The operator: reconciles `ModelRelay` and `WorkerPool` objects into relay Deployments and worker DaemonSets.
