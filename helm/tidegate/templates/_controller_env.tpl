{{/* The controller's settings: fields of tidegate/settings.py. Secrets are files; their paths are here. */}}
{{- define "tidegate.controllerOwnEnv" -}}
- {name: PYTHONUNBUFFERED, value: "1"}
- {name: TIDEGATE_HOME, value: /var/lib/tidegate}
- {name: TIDEGATE_HOST, value: {{ .Values.gateway.bindAddress | quote }}}
- {name: TIDEGATE_CONTROL_PORT, value: "8080"}
- {name: TIDEGATE_AUTH, value: keys}
- {name: TIDEGATE_PLATFORM, value: kubernetes}
- {name: TIDEGATE_RELEASE, value: {{ .Release.Name | quote }}}
- name: TIDEGATE_NAMESPACE
  valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
- name: TIDEGATE_POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- {name: TIDEGATE_WATCH_NAMESPACES, value: {{ include "tidegate.namespaces" . | quote }}}
- {name: TIDEGATE_CONTROL_TOKEN_FILE, value: /etc/tidegate/secrets/control/token}
- {name: TIDEGATE_GATEWAY_KEY_FILE, value: /etc/tidegate/secrets/gateway/key}
- {name: TIDEGATE_STORE_URL_FILE, value: /etc/tidegate/secrets/store/url}
- {name: TIDEGATE_GATEWAY_INTERNAL_URL, value: {{ include "tidegate.gatewayUrl" . | quote }}}
- {name: TIDEGATE_REQUEST_TIMEOUT_S, value: {{ .Values.gateway.requestTimeoutSeconds | quote }}}
- {name: TIDEGATE_TRACKING_URI, value: {{ include "tidegate.trackingUri" . | quote }}}
{{- if .Values.gateway.tls.existingSecret }}
- {name: TIDEGATE_TLS_CERT_FILE, value: /etc/tidegate/gateway-certificate/tls.crt}
{{- end }}
{{- with .Values.controller.trustedProxies }}
- {name: TIDEGATE_TRUSTED_PROXIES, value: {{ toJson . | quote }}}
{{- end }}
{{- with .Values.controller.prometheusUrl }}
- {name: TIDEGATE_PROMETHEUS_URL, value: {{ . | quote }}}
{{- end }}
{{- if .Values.controller.prometheusToken.existingSecret }}
- {name: TIDEGATE_PROMETHEUS_TOKEN_FILE, value: /etc/tidegate/secrets/prometheus/token}
{{- end }}
{{- if .Values.controller.webhooks }}
{{- $hooks := list }}
{{- range .Values.controller.webhooks }}
{{- $hook := dict "name" .name "url" .url "secret_file" (printf "/etc/tidegate/secrets/webhooks/%s/secret" .name) }}
{{- with .events }}{{ $_ := set $hook "events" . }}{{ end }}
{{- $hooks = append $hooks $hook }}
{{- end }}
- {name: TIDEGATE_WEBHOOKS, value: {{ toJson $hooks | quote }}}
{{- end }}
- {name: TIDEGATE_DRIFT, value: {{ .Values.drift.enabled | quote }}}
{{- if .Values.drift.enabled }}
- {name: TIDEGATE_DRIFT_WATCH_URL, value: {{ printf "http://%s-drift.%s.svc:8090" .Release.Name .Release.Namespace | quote }}}
- {name: TIDEGATE_DRIFT_KEY_FILE, value: /etc/tidegate/secrets/drift/key}
{{- end }}
{{- if or .Values.drift.enabled (include "tidegate.requestLogClaim" .) }}
- {name: TIDEGATE_REQUEST_SECRET_FILE, value: /etc/tidegate/secrets/requests/request-id-secret}
{{- end }}
{{- with .Values.tracing.endpoint }}
- {name: TIDEGATE_OTLP_ENDPOINT, value: {{ . | quote }}}
- {name: TIDEGATE_OTLP_PROTOCOL, value: {{ $.Values.tracing.protocol }}}
- {name: TIDEGATE_TRACE_RATIO, value: {{ $.Values.tracing.ratio | quote }}}
- {name: TIDEGATE_TRACE_CANARIES_PER_S, value: {{ $.Values.tracing.canariesPerSecond | quote }}}
- {name: TIDEGATE_TRACE_ENGINES, value: {{ $.Values.tracing.engines }}}
{{- end }}
- {name: TIDEGATE_DEFAULT_POLICY, value: {{ .Values.guardrails.defaultPolicy }}}
- {name: TIDEGATE_TRAFFIC_ROUTER, value: {{ .Values.trafficRouter.kind }}}
{{- if eq .Values.trafficRouter.kind "gateway-api" }}
- {name: TIDEGATE_HTTP_ROUTE, value: {{ default "{model}" .Values.trafficRouter.httpRoute.name | quote }}}
- {name: TIDEGATE_HTTP_ROUTE_NAMESPACE, value: {{ default .Release.Namespace .Values.trafficRouter.httpRoute.namespace | quote }}}
{{- end }}
- {name: TIDEGATE_GATEWAY_SERVICE, value: {{ printf "%s-gateway" .Release.Name | quote }}}
- {name: TIDEGATE_ENGINE_IMAGE, value: {{ include "tidegate.image" (dict "image" .Values.engine.image "root" .) | quote }}}
- {name: TIDEGATE_ENGINE_SERVICE_ACCOUNT, value: {{ printf "%s-engine" .Release.Name | quote }}}
- {name: TIDEGATE_RAY_AUTH_SECRET, value: {{ include "tidegate.rayTokenSecret" . | quote }}}
- {name: TIDEGATE_RAY_TOKEN_FILE, value: /etc/tidegate/secrets/ray-token/auth_token}
- {name: TIDEGATE_ENGINE_TRACKING_URI, value: {{ include "tidegate.trackingUri" . | quote }}}
{{- with .Values.global.imagePullSecrets }}
- {name: TIDEGATE_ENGINE_PULL_SECRETS, value: {{ toJson . | quote }}}
{{- end }}
{{- with .Values.engine.credentialsSecret }}
- {name: TIDEGATE_ENGINE_CREDENTIALS_SECRET, value: {{ . | quote }}}
{{- end }}
{{- with .Values.engine.modelCache.claim }}
- {name: TIDEGATE_MODEL_CACHE_CLAIM, value: {{ . | quote }}}
{{- end }}
{{- with .Values.engine.modelCache.path }}
- {name: TIDEGATE_MODEL_CACHE_PATH, value: {{ . | quote }}}
{{- end }}
{{- with include "tidegate.redisAddress" . }}
- {name: TIDEGATE_REDIS_ADDRESS, value: {{ . | quote }}}
{{- if or $.Values.redis.enabled $.Values.redis.existingSecret }}
- {name: TIDEGATE_REDIS_SECRET, value: {{ include "tidegate.redisSecret" $ | quote }}}
{{- end }}
{{- end }}
{{- end -}}

{{/* What controller.env names wins over the chart's own: Helm 4 applies on the server, where a name may stand there once. */}}
{{- define "tidegate.controllerEnv" -}}
{{- $given := .Values.controller.env }}
{{- range fromYamlArray (include "tidegate.controllerOwnEnv" .) }}
{{- if not (hasKey $given .name) }}
- {{ toJson . }}
{{- end }}
{{- end }}
{{- range $name, $value := $given }}
- {name: {{ $name }}, value: {{ $value | quote }}}
{{- end }}
{{- end -}}
