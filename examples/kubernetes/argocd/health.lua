-- The health of a ModelDeployment for Argo CD. Put it into argocd-cm under
-- resource.customizations.health.tidegate.dev_ModelDeployment, as argocd-cm.yaml beside this file does.
--
-- Order: what harms now, what waits for a person, what is under way, what ended badly, what serves.

local function answer(status, message)
  return { status = status, message = message }
end

local meta = obj.metadata or {}
local status = obj.status

if meta.deletionTimestamp ~= nil then
  return answer("Progressing", "draining before deletion")
end
if status == nil or status.observedGeneration == nil then
  return answer("Progressing", "the operator has not seen it yet; is a controller of a release watching this namespace?")
end
if meta.generation ~= nil and status.observedGeneration < meta.generation then
  return answer("Progressing", "the operator has not seen its newest spec yet")
end

local held, why, denied = {}, {}, {}
for _, condition in ipairs(status.conditions or {}) do
  held[condition.type] = condition.status == "True"
  denied[condition.type] = condition.status == "False"
  why[condition.type] = condition.message or condition.reason
end

if held.Degraded then
  return answer("Degraded", why.Degraded)
end
if status.phase == "Paused" then
  local verb = status.awaits
  if verb ~= nil and verb ~= "" then
    return answer("Suspended", "waits for a person: " .. verb)
  end
  return answer("Suspended", status.reason or "paused")
end
if held.Progressing then
  return answer("Progressing", why.Progressing)
end
if held.RolledBack then
  return answer("Degraded", why.RolledBack)
end
if held.Ready then
  return answer("Healthy", why.Ready)
end
if denied.Ready then
  return answer("Degraded", why.Ready)
end
return answer("Progressing", "no condition says yet how it is")
