{{/* What every pod has in common. Level `restricted` of the pod security standards throughout. */}}

{{- define "tidegate.podSecurity" -}}
{{- $id := default 10001 .id -}}
runAsNonRoot: true
runAsUser: {{ $id }}
runAsGroup: {{ $id }}
fsGroup: {{ $id }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "tidegate.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
privileged: false
capabilities: {drop: [ALL]}
{{- end -}}

{{/* enableServiceLinks: else a release called tidegate gets TIDEGATE_GATEWAY_PORT=tcp://... , which is a setting of ours. */}}
{{- define "tidegate.podStart" -}}
enableServiceLinks: false
{{- with .Values.global.imagePullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Placement of a part's pods. */}}
{{- define "tidegate.placement" -}}
{{- with .part.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .part.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .part.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .part.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- if .part.topologyKeys }}
topologySpreadConstraints:
{{- range .part.topologyKeys }}
  - maxSkew: 1
    topologyKey: {{ . }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "tidegate.selector" (dict "root" $.root "component" $.component) | nindent 8 }}
    matchLabelKeys: [pod-template-hash]
{{- end }}
{{- end }}
{{- end -}}

{{- define "tidegate.home" -}}
- name: home
  mountPath: /var/lib/tidegate
- name: tmp
  mountPath: /tmp
{{- end -}}

{{- define "tidegate.firstSecretsPod" -}}
{{- $values := .root.Values -}}
metadata:
  labels: {{- include "tidegate.labels" (dict "root" .root "component" "first-secrets") | nindent 4 }}
  annotations:
    checksum/plan: {{ sha256sum .plan }}
spec:
  {{- include "tidegate.podStart" .root | nindent 2 }}
  serviceAccountName: {{ .name }}
  automountServiceAccountToken: true
  restartPolicy: OnFailure
  securityContext: {{- include "tidegate.podSecurity" (dict) | nindent 4 }}
  containers:
    - name: first-secrets
      image: {{ include "tidegate.image" (dict "image" $values.image "root" .root) }}
      imagePullPolicy: {{ $values.image.pullPolicy }}
      command: [python, -m, rollout.operator.first_secrets, /etc/tidegate/plan/plan.json]
      resources: {{- toYaml $values.jobs.resources | nindent 8 }}
      securityContext: {{- include "tidegate.containerSecurity" .root | nindent 8 }}
      volumeMounts:
        - {name: plan, mountPath: /etc/tidegate/plan, readOnly: true}
        - {name: tmp, mountPath: /tmp}
  volumes:
    - name: plan
      configMap: {name: {{ .name }}}
    - name: tmp
      emptyDir: {sizeLimit: 16Mi}
{{- end -}}

{{- define "tidegate.gatewayScaling" -}}
scaleUp:
  stabilizationWindowSeconds: 0
  policies: [{type: Percent, value: 100, periodSeconds: 30}, {type: Pods, value: 2, periodSeconds: 30}]
  selectPolicy: Max
scaleDown:
  stabilizationWindowSeconds: {{ .Values.gateway.autoscaling.scaleDownStabilizationSeconds }}
  # One at a time: each that goes takes its streams' time to end.
  policies: [{type: Pods, value: 1, periodSeconds: 60}]
{{- end -}}
