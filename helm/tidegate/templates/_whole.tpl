{{- /*
A value that is set to null is none: Helm takes the key away, before schema and templates see it, and the schema can't say
the way out. files/keys.json has every key with its default. Included by what Helm renders first, so that nothing
stumbles over what is missing.
*/ -}}
{{- define "tidegate.whole" -}}
{{- include "tidegate.wholePart" (dict "given" .Values "wanted" (.Files.Get "files/keys.json" | fromJson) "path" "") -}}
{{- end }}

{{- define "tidegate.wholePart" -}}
{{- range $name, $default := .wanted }}
{{- $at := printf "%s%s" $.path $name }}
{{- if or (not (hasKey $.given $name)) (kindIs "invalid" (index $.given $name)) }}
{{- $kept := printf "leave it out for its default, %s, or give a value" (toJson $default) }}
{{- if kindIs "map" $default }}
{{- $kept = ternary "leave it out for its default, {}, or give a value" (printf "the chart can't do without this section: leave it out to keep its defaults, and set what should be another inside it, %s.%s for example" $at (keys $default | sortAlpha | first)) (empty $default) }}
{{- end }}
{{- fail (printf "%s is null; %s (after an upgrade with --reuse-values: an older chart had no such value; use --reset-then-reuse-values)" $at $kept) }}
{{- else if and (kindIs "map" $default) (kindIs "map" (index $.given $name)) }}
{{- include "tidegate.wholePart" (dict "given" (index $.given $name) "wanted" $default "path" (printf "%s." $at)) }}
{{- end }}
{{- end }}
{{- end }}
