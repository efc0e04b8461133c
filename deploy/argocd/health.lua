-- How Argo CD judges ModelRelay and WorkerPool. To install it, beside whatever argocd-cm holds already:
--
--   kubectl --namespace argocd create configmap argocd-cm \
--     --from-file=resource.customizations.health.modelrelay.io_ModelRelay=deploy/argocd/health.lua \
--     --from-file=resource.customizations.health.modelrelay.io_WorkerPool=deploy/argocd/health.lua \
--     --dry-run=client --output=yaml | kubectl apply --server-side --field-manager=modelrelay --filename -

-- What passes by itself, or is how every start looks.
local passing = {
  Pending = true, RollingOut = true, APIError = true, NoReadyRelay = true, NoReadyWorker = true, RelayUnreachable = true,
}

local annotations = obj.metadata.annotations
if annotations ~= nil and annotations["modelrelay.io/paused"] == "true" then
  return { status = "Suspended", message = "The annotation modelrelay.io/paused stops the operator's writes" }
end

local ready = nil
if obj.status ~= nil and obj.status.conditions ~= nil then
  for _, condition in ipairs(obj.status.conditions) do
    if condition.type == "Ready" then
      ready = condition
    end
  end
end

if ready == nil then
  return { status = "Progressing", message = "Waiting for the operator to look at it" }
end
if ready.observedGeneration ~= nil and ready.observedGeneration ~= obj.metadata.generation then
  return { status = "Progressing", message = "Waiting for the operator to look at the change" }
end
if ready.status == "True" then
  return { status = "Healthy", message = ready.message }
end
if ready.status == "Unknown" or passing[ready.reason] then
  return { status = "Progressing", message = ready.reason .. ": " .. ready.message }
end
return { status = "Degraded", message = ready.reason .. ": " .. ready.message }
