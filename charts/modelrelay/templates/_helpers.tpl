{{/* The name of everything in the release: short enough for any suffix. */}}
{{- define "modelrelay.name" -}}
{{- if contains "modelrelay" .Release.Name -}}
{{- printf "%s-operator" (.Release.Name | trunc 40 | trimSuffix "-") -}}
{{- else -}}
{{- printf "%s-modelrelay-operator" (.Release.Name | trunc 40 | trimSuffix "-") -}}
{{- end -}}
{{- end -}}

{{/* The labels that select the operator's pods. Relays and workers let pods with this name ask their operations ports. */}}
{{- define "modelrelay.selector" -}}
app.kubernetes.io/name: modelrelay-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "modelrelay.labels" -}}
{{ include "modelrelay.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: modelrelay
{{- end -}}

{{- define "modelrelay.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (ternary (include "modelrelay.name" .) "default" .Values.serviceAccount.create) -}}
{{- end -}}

{{/* One image: a list of the root and of {repository, tag, digest}. */}}
{{- define "modelrelay.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- with $root.Values.registry }}{{ trimSuffix "/" . }}/{{ end -}}
{{- $image.repository -}}
{{- if $image.digest }}@{{ $image.digest }}{{ else }}:{{ $image.tag | default $root.Chart.AppVersion }}{{ end -}}
{{- end -}}
