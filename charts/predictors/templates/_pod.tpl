{{/* Parts of pods that servers and the pre-compile Job share. */}}

{{- define "predictors.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{/* The whole security context, so that an InferenceService that only names our runtime is restricted, too. */}}
{{- define "predictors.containerSecurity" -}}
allowPrivilegeEscalation: false
capabilities:
  drop: [ALL]
readOnlyRootFilesystem: true
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{/* Requests and limits with the GPUs: (list model) */}}
{{- define "predictors.resources" -}}
{{- $model := first . -}}
{{- $resources := deepCopy (default dict $model.resources) -}}
{{- if int $model.gpu.count -}}
  {{- range $side := list "requests" "limits" -}}
    {{- $of := get $resources $side | default dict -}}
    {{- $_ := set $of $model.gpu.resource ($model.gpu.count | int | toString) -}}
    {{- $_ := set $resources $side $of -}}
  {{- end -}}
{{- end -}}
{{ toYaml $resources }}
{{- end }}

{{/* Where pods may run: (list model) */}}
{{- define "predictors.placement" -}}
{{- $model := first . -}}
{{- $gpu := gt (int $model.gpu.count) 0 -}}
{{- $selector := deepCopy (default dict $model.nodeSelector) -}}
{{- $tolerations := default list $model.tolerations -}}
{{- if $gpu -}}
  {{- $selector = merge (deepCopy (default dict $model.gpu.nodeSelector)) $selector -}}
  {{- $tolerations = concat $tolerations (default list $model.gpu.tolerations) -}}
{{- end -}}
{{- $place := dict -}}
{{- with $selector }}{{ $_ := set $place "nodeSelector" . }}{{ end -}}
{{- with $tolerations }}{{ $_ := set $place "tolerations" . }}{{ end -}}
{{- with $model.affinity }}{{ $_ := set $place "affinity" . }}{{ end -}}
{{- with $model.priorityClassName }}{{ $_ := set $place "priorityClassName" . }}{{ end -}}
{{- if and $gpu $model.gpu.runtimeClassName }}{{ $_ := set $place "runtimeClassName" $model.gpu.runtimeClassName }}{{ end -}}
{{- with $place }}{{ toYaml . }}{{ end -}}
{{- end }}

{{/* Volumes for `/tmp` and `/dev/shm`: (list model) */}}
{{- define "predictors.scratchVolumes" -}}
{{- $model := first . -}}
- name: tmp
  emptyDir:
    sizeLimit: {{ $model.tmp.size }}
- name: shm
  emptyDir:
    medium: Memory
    sizeLimit: {{ $model.shm.size }}
{{- end }}

{{- define "predictors.scratchMounts" -}}
- name: tmp
  mountPath: /tmp
- name: shm
  mountPath: /dev/shm
{{- end }}
