{{/* Seconds that a model's pod may take to end. With `server.grpc_connection_s` it lingers on while older gRPC connections are open, which gRPC ends within 1.1
times their age. */}}
{{- define "predictors.stopSeconds" -}}
{{- $linger := int .drain.lingerSeconds -}}
{{- if gt $linger 0 -}}
{{- $age := get (get .settings "server" | default dict) "grpc_connection_s" | default 0 -}}
{{- $linger = max $linger (int (ceil (mulf 1.1 $age))) -}}
{{- end -}}
{{- add (int .drain.preStopSeconds) $linger (int .drain.graceSeconds) 15 -}}
{{- end }}

{{/* A predictor, stable or canary, complete but for its replicas: (list root name model image-or-empty) */}}
{{- define "predictors.predictor" -}}
{{- $root := index . 0 -}}{{- $name := index . 1 -}}{{- $model := index . 2 -}}{{- $image := index . 3 -}}
serviceAccountName: {{ include "predictors.serviceAccountName" (list $root $name $model) | toYaml }}
automountServiceAccountToken: {{ $root.Values.events.enabled }}
enableServiceLinks: false
timeout: {{ int $model.timeoutSeconds }}
terminationGracePeriodSeconds: {{ include "predictors.stopSeconds" $model }}
deploymentStrategy:
  type: RollingUpdate
  rollingUpdate:
    {{- if eq $model.rollout "surge" }}
    maxSurge: 1
    maxUnavailable: 0
    {{- else }}
    maxSurge: 0
    maxUnavailable: 1
    {{- end }}
{{- with $model.podLabels }}
labels:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $model.podAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- include "predictors.pullSecrets" $root }}
{{- with include "predictors.placement" (list $model) }}
{{ . }}
{{- end }}
{{- with $model.topologySpread }}
topologySpreadConstraints:
  {{- range . }}
  - labelSelector:
      matchLabels:
        serving.kserve.io/inferenceservice: {{ $name | toYaml }}
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}
securityContext:
  {{- include "predictors.podSecurity" (list $model) | nindent 2 }}
volumes:
  {{- include "predictors.scratchVolumes" (list $model) | nindent 2 }}
  {{- if $model.cache.enabled }}
  # another name than the runtime's `cache`, with which KServe would merge it into a volume of two kinds
  - name: compiled
    persistentVolumeClaim:
      claimName: {{ include "predictors.cacheClaim" (list $root $name $model) | toYaml }}
      {{- if $model.cache.precompile }}
      readOnly: true
      {{- end }}
  {{- end }}
  {{- with include "predictors.claimVolumes" (list $model) | trim }}
  {{- . | nindent 2 }}
  {{- end }}
  {{- with $model.extraVolumes }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with $model.initContainers }}
initContainers:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $model.extraContainers }}
containers:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- include "predictors.storageUris" (list $model) }}
{{- with $model.storage.containerName }}
storageContainerName: {{ . | toYaml }}
{{- end }}
model:
  {{- include "predictors.container" . | nindent 2 }}
{{- end }}

{{/* The part of a predictor that KServe merges into the runtime's container. */}}
{{- define "predictors.container" -}}
{{- $root := index . 0 -}}{{- $name := index . 1 -}}{{- $model := index . 2 -}}{{- $image := index . 3 -}}
modelFormat:
  name: {{ $model.format | toYaml }}
  version: {{ include "predictors.version" $model | quote }}
runtime: {{ include "predictors.runtime" (list $root $name $model) | toYaml }}
protocolVersion: v2
{{- if not (include "predictors.downloadsLoras" (list $model)) }}
storageUri: {{ $model.storage.uri | toYaml }}
{{- end }}
{{- with $image }}
image: {{ . | toYaml }}
{{- end }}
{{- with $model.image }}
{{- with .pullPolicy }}
imagePullPolicy: {{ . }}
{{- end }}
{{- end }}
{{- include "predictors.guestArgs" (list $model) }}
{{- with $model.envFrom }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
env:
  {{- include "predictors.env" (list $root $model) | nindent 2 }}
{{ include "predictors.probes" (list $root $model) }}
lifecycle:
  preStop:
    sleep:
      seconds: {{ int $model.drain.preStopSeconds }}
resources:
  {{- include "predictors.resources" (list $model) | nindent 2 }}
{{- $mounts := include "predictors.claimMounts" (list $model) | trim }}
{{- if or $model.cache.enabled $mounts $model.extraVolumeMounts }}
volumeMounts:
  {{- if $model.cache.enabled }}
  - name: compiled
    mountPath: /var/cache/predictors
    {{- if $model.cache.precompile }}
    readOnly: true
    {{- end }}
  {{- end }}
  {{- with $mounts }}
  {{- . | nindent 2 }}
  {{- end }}
  {{- with $model.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
{{- end }}

{{/* True where a model's container needs a ServingRuntime of its own: KServe lays a model's fields over the runtime's, and can remove none: (list root model) */}}
{{- define "predictors.hasRuntime" -}}
{{- $shared := include "predictors.base" (first .) | fromJson -}}
{{- $differs := ne (toJson $shared.securityContext) (toJson (last .).securityContext) -}}
{{- range $side := list "requests" "limits" -}}
{{- $own := get (default dict (last $).resources) $side | default dict -}}
{{- range $key, $_ := get (default dict $shared.resources) $side | default dict }}{{ if not (hasKey $own $key) }}{{ $differs = true }}{{ end }}{{ end -}}
{{- end -}}
{{- if $differs }}true{{ end -}}
{{- end }}

{{/* ServingRuntime of a model: (list root name model) */}}
{{- define "predictors.runtime" -}}
{{- $root := index . 0 -}}{{- $model := index . 2 -}}
{{- if include "predictors.hasRuntime" (list $root $model) -}}
{{ include "predictors.of" (list $root (index . 1) "runtime") }}
{{- else -}}
{{ include "predictors.of" (list $root $model.format) }}
{{- end -}}
{{- end }}
