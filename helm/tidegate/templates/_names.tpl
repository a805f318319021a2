{{/* Everything is named RELEASE-part, so two releases share a name only in two namespaces. */}}

{{- define "tidegate.image" -}}
{{- $image := .image -}}
{{- $repository := $image.repository -}}
{{- with .root.Values.global.imageRegistry -}}
{{- /* A mirror keeps the path and takes the place of the registry that an image names. */ -}}
{{- $first := first (splitList "/" $repository) -}}
{{- if or (contains "." $first) (contains ":" $first) -}}
{{- $repository = trimPrefix (printf "%s/" $first) $repository -}}
{{- end -}}
{{- $repository = printf "%s/%s" . $repository -}}
{{- end -}}
{{- if $image.digest -}}
{{ $repository }}@{{ $image.digest }}
{{- else -}}
{{ $repository }}:{{ default .root.Chart.AppVersion $image.tag }}
{{- end -}}
{{- end -}}

{{- define "tidegate.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "tidegate.pods" -}}
matchLabels: {{- include "tidegate.selector" . | nindent 2 }}
{{- end -}}

{{- define "tidegate.labels" -}}
{{ include "tidegate.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: tidegate
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* Namespaces that this release serves, its own first, as JSON. */}}
{{- define "tidegate.namespaces" -}}
{{- prepend (without .Values.watchNamespaces .Release.Namespace) .Release.Namespace | toJson -}}
{{- end -}}

{{/*
Refuse a namespace that another release serves, told by the Role that every release has in each namespace it serves. A
release of the same name elsewhere has a Role of the same name: Helm itself refuses that one.
*/}}
{{- define "tidegate.nobodyElse" -}}
{{- range .roles -}}
{{- $labels := default dict .metadata.labels -}}
{{- $other := get $labels "app.kubernetes.io/instance" -}}
{{- if and (eq (get $labels "app.kubernetes.io/name") $.root.Chart.Name) (eq .metadata.name (printf "%s-controller" $other)) (ne $other $.root.Release.Name) -}}
{{- fail (printf "namespace %q is served by the release %q already, and both would write the status of its ModelDeployments; give each release its own namespace and watchNamespaces, or set sharedNamespaces=true if you know why" $.namespace $other) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "tidegate.controlSecret" -}}
{{- default (printf "%s-control" .Release.Name) .Values.controller.token.existingSecret -}}
{{- end -}}
{{- define "tidegate.gatewaySecret" -}}
{{- default (printf "%s-gateway" .Release.Name) .Values.gateway.secret.existingSecret -}}
{{- end -}}
{{- define "tidegate.driftSecret" -}}
{{- default (printf "%s-drift" .Release.Name) .Values.drift.secret.existingSecret -}}
{{- end -}}

{{/* The claim of the request log; empty where each gateway has its own disk. */}}
{{- define "tidegate.requestLogClaim" -}}
{{- if .Values.requestLog.ratio -}}
{{- ternary (printf "%s-request-log" .Release.Name) .Values.requestLog.storage.claim .Values.requestLog.storage.create -}}
{{- end -}}
{{- end -}}

{{/* What an OTLP exporter is told of whom it speaks for. The exporters read it from nowhere else than their environment. */}}
{{- define "tidegate.otlpHeaders" -}}
{{- if and .Values.tracing.endpoint .Values.tracing.headersSecret -}}
- name: OTEL_EXPORTER_OTLP_HEADERS
  valueFrom: {secretKeyRef: {name: {{ .Values.tracing.headersSecret }}, key: headers}}
{{- end -}}
{{- end -}}

{{/* Ports of the collector. */}}
{{- define "tidegate.otlpPorts" -}}
{{- $ports := list 4317 4318 (int (include "tidegate.portOf" .)) | uniq -}}
[{{ range $i, $port := $ports }}{{ if $i }}, {{ end }}{port: {{ $port }}, protocol: TCP}{{ end }}]
{{- end -}}

{{- define "tidegate.storeSecret" -}}
{{- default (printf "%s-store" .Release.Name) .Values.store.existingSecret -}}
{{- end -}}
{{- define "tidegate.redisSecret" -}}
{{- default (printf "%s-redis" .Release.Name) .Values.redis.existingSecret -}}
{{- end -}}
{{- define "tidegate.rayTokenSecret" -}}
{{- default (printf "%s-ray-token" .Release.Name) .Values.engine.rayToken.existingSecret -}}
{{- end -}}

{{- define "tidegate.redisAddress" -}}
{{- if .Values.redis.enabled -}}
{{ printf "%s-redis.%s.svc:6379" .Release.Name .Release.Namespace }}
{{- else -}}
{{ .Values.redis.address }}
{{- end -}}
{{- end -}}

{{- define "tidegate.trackingUri" -}}
{{- if .Values.mlflow.enabled -}}
{{ printf "http://%s-mlflow.%s.svc:5000" .Release.Name .Release.Namespace }}
{{- else -}}
{{ .Values.mlflow.trackingUri }}
{{- end -}}
{{- end -}}

{{- define "tidegate.gatewayUrl" -}}
{{ ternary "https" "http" (ne .Values.gateway.tls.existingSecret "") }}://{{ .Release.Name }}-gateway.{{ .Release.Namespace }}.svc:{{ .Values.gateway.service.port }}
{{- end -}}

{{/* The port that a URL, or a `host:port`, leads to. */}}
{{- define "tidegate.portOf" -}}
{{- $at := ternary (urlParse .) (dict "host" . "scheme" "") (contains "://" .) -}}
{{- $port := regexFind ":[0-9]+$" $at.host | trimPrefix ":" -}}
{{- $port | default (ternary "443" "80" (eq $at.scheme "https")) -}}
{{- end -}}
