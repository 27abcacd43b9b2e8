{{- define "cosmorama.fullname" -}}
{{- if .Values.fullnameOverride }}{{ .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}{{ else if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 63 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 63 | trimSuffix "-" }}{{ end }}
{{- end }}

{{/* What clients reach. */}}
{{- define "cosmorama.service" -}}
{{ .Values.service.name | default (include "cosmorama.fullname" .) }}
{{- end }}

{{/* Names by which clients reach it: without API keys others are refused. */}}
{{- define "cosmorama.hosts" -}}
{{- $hosts := list }}
{{- range tuple .Release.Namespace (printf "%s.svc" .Release.Namespace) }}
{{- $hosts = append $hosts (printf "%s.%s" (include "cosmorama.service" $) .) }}
{{- end }}
{{- if .Values.ingress.enabled }}{{ range .Values.ingress.hosts }}{{ $hosts = append $hosts .host }}{{ end }}{{ end }}
{{- join "," $hosts }}
{{- end }}

{{- define "cosmorama.labels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{/* Labels that select the pods of one role: (list . "worker") */}}
{{- define "cosmorama.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ $root.Chart.Name }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* Who answers clients. */}}
{{- define "cosmorama.front" -}}
{{- if .Values.fleet.enabled }}api{{ else }}server{{ end }}
{{- end }}

{{/* Who generates. */}}
{{- define "cosmorama.maker" -}}
{{- if .Values.fleet.enabled }}worker{{ else }}server{{ end }}
{{- end }}

{{- define "cosmorama.probe" -}}
{{- $probe := index . 0 }}
httpGet: {path: {{ $probe.path }}, port: http-api}
{{- range $name := list "initialDelaySeconds" "periodSeconds" "timeoutSeconds" "failureThreshold" "successThreshold" }}
{{- with index $probe $name }}
{{ $name }}: {{ . }}
{{- end }}
{{- end }}
{{- end }}

{{/* The names in `env`, each with its value as text, as JSON. */}}
{{- define "cosmorama.given" -}}
{{- $given := dict }}
{{- range .Values.env }}{{ $_ := set $given .name (.value | default "" | toString) }}{{ end }}
{{- toJson $given }}
{{- end }}

{{/* The model's name: as it is set, else for the vendor's variant; nothing where `env` or `envFrom` have it. */}}
{{- define "cosmorama.model" -}}
{{- $given := include "cosmorama.given" . | fromJson }}
{{- $variant := get $given "NIM_MODEL_VARIANT" }}
{{- if .Values.model.name }}{{ .Values.model.name }}
{{- else if or (hasKey $given "NIM_MODEL_PATH") (hasKey $given "COSMORAMA_MODEL") (hasKey $given "COSMORAMA_MODELS") }}
{{- else if $variant }}cosmos3-{{ $variant | replace "t2i" "text2image" | replace "i2v" "image2video" }}
{{- else if not .Values.envFrom }}microcosm
{{- end }}
{{- end }}

{{- define "cosmorama.environment" -}}
{{- $given := include "cosmorama.given" . | fromJson }}
- {name: COSMORAMA_PORT, value: {{ .Values.model.apiPort | quote }}}
- {name: NIM_CACHE_PATH, value: {{ .Values.model.nimCache | quote }}}
{{- $ours := list
  (list "COSMORAMA_HOST" "0.0.0.0")
  (list "COSMORAMA_LOG_FORMAT" (ternary "json" "text" .Values.model.jsonLogging) "NIM_LOGGING_JSONL" "NIM_JSONL_LOGGING")
  (list "NIM_LOG_LEVEL" .Values.model.logLevel "COSMORAMA_LOG_LEVEL")
  (list "COSMORAMA_STATE_DIR" "/var/lib/cosmorama")
  (list "COSMORAMA_DRAIN_S" .Values.drainSeconds)
  (list "COSMORAMA_ARTIFACTS" .Values.artifacts.url)
  (list "COSMORAMA_ALLOWED_HOSTS" (include "cosmorama.hosts" .))
  (list "COSMORAMA_MODEL" (include "cosmorama.model" .)) }}
{{- range $setting := $ours }}
{{- $free := true }}{{/* `env` wins, by whichever of its names */}}
{{- range without $setting (index $setting 1) }}{{ if hasKey $given . }}{{ $free = false }}{{ end }}{{ end }}
{{- if and $free (index $setting 1) }}
- {name: {{ index $setting 0 }}, value: {{ index $setting 1 | toString | quote }}}
{{- end }}
{{- end }}
{{- $secrets := list
  (list "COSMORAMA_DATABASE_URL" .Values.database.urlSecret false)
  (list "COSMORAMA_API_KEYS" .Values.apiKeys.secret false)
  (list "NGC_API_KEY" .Values.model.ngcAPISecret true)
  (list "HF_TOKEN" .Values.model.hfTokenSecret false) }}
{{- range $secrets }}
{{- if and (index . 1) (not (hasKey $given (index . 0))) }}
- name: {{ index . 0 }}
  valueFrom: {secretKeyRef: {name: {{ index . 1 }}, key: {{ index . 0 }}{{ if index . 2 }}, optional: true{{ end }}}}
{{- end }}
{{- end }}
{{- with .Values.env }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* A list of things with names, which the vendor's charts also take as an object by name. */}}
{{- define "cosmorama.named" -}}
{{- if kindIs "map" . }}
{{- range $name, $thing := . }}
- {{ toYaml (merge (dict "name" $name) $thing) | nindent 2 | trim }}
{{- end }}
{{- else }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Which of some values nothing follows from: (list "" .Values known) */}}
{{- define "cosmorama.ignored" -}}
{{- $above := index . 0 }}
{{- $known := index . 2 }}
{{- range $key, $value := index . 1 }}
{{- $name := printf "%s%s" $above $key }}
{{- $beneath := printf "%s." $name }}
{{- $parts := false }}
{{- range $known }}{{ if hasPrefix $beneath . }}{{ $parts = true }}{{ end }}{{ end }}
{{- if and $parts (kindIs "map" $value) }}{{ include "cosmorama.ignored" (list $beneath $value $known) }}
{{- else if not (or $parts (has $name $known)) }}{{ $name }} {{ end }}
{{- end }}
{{- end }}

{{/* A pod of one role: (list . "server" | "api" | "worker") */}}
{{- define "cosmorama.pod" -}}
{{- $root := index . 0 }}
{{- $role := index . 1 }}
{{- with $root }}
metadata:
  labels:
    {{- include "cosmorama.labels" . | nindent 4 }}
    app.kubernetes.io/component: {{ $role }}
    {{- with merge (dict) .Values.podLabels .Values.model.labels }}{{ toYaml . | nindent 4 }}{{ end }}
  {{- with .Values.podAnnotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  {{- with .Values.imagePullSecrets }}
  imagePullSecrets: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if or .Values.serviceAccount.create .Values.serviceAccount.name }}
  serviceAccountName: {{ .Values.serviceAccount.name | default (include "cosmorama.fullname" .) }}
  {{- end }}
  automountServiceAccountToken: false
  securityContext: {{- toYaml .Values.podSecurityContext | nindent 4 }}
  terminationGracePeriodSeconds: {{ add .Values.drainSeconds 30 }}
  {{- with .Values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- if ne $role "api" }}
  {{- with .Values.runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  {{- with .Values.nodeSelector }}
  nodeSelector: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.tolerations }}
  tolerations: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.affinity }}
  affinity: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.topologySpreadConstraints }}
  topologySpreadConstraints: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- end }}
  {{- $before := .Values.initContainers }}
  {{- if kindIs "map" $before }}{{ $before = get $before "extraInit" }}{{ end }}
  {{- with $before }}
  initContainers: {{- toYaml . | nindent 4 }}
  {{- end }}
  containers:
    - name: cosmorama
      image: "{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}"
      imagePullPolicy: {{ .Values.image.pullPolicy | default "IfNotPresent" }}
      {{- if and .Values.customCommand (ne $role "api") }}
      command: {{- toYaml .Values.customCommand | nindent 8 }}
      {{- end }}
      {{- if eq $role "api" }}
      args: [serve, --role, api]
      {{- else if .Values.customArgs }}
      args: {{- toYaml .Values.customArgs | nindent 8 }}
      {{- else if eq $role "worker" }}
      args: [worker]
      {{- else }}
      args: [serve]
      {{- end }}
      securityContext: {{- toYaml .Values.containerSecurityContext | nindent 8 }}
      env: {{- include "cosmorama.environment" . | nindent 8 }}
      {{- if or .Values.envFrom .Values.artifacts.credentialsSecret }}
      envFrom:
        {{- with .Values.artifacts.credentialsSecret }}
        - secretRef: {name: {{ . }}}
        {{- end }}
        {{- with .Values.envFrom }}{{ toYaml . | nindent 8 }}{{ end }}
      {{- end }}
      ports:
        - {name: http-api, containerPort: {{ .Values.model.apiPort }}}
      {{- $ready := ternary (dict "path" .Values.livenessProbe.path) dict (eq $role "api") }}
      {{- /* Who answers clients takes jobs before a worker is there, and would be unreachable if it had to be ready. */}}
      {{- if .Values.startupProbe.enabled }}
      startupProbe: {{- include "cosmorama.probe" (list (merge $ready .Values.startupProbe)) | nindent 8 }}
      {{- end }}
      {{- if .Values.livenessProbe.enabled }}
      livenessProbe: {{- include "cosmorama.probe" (list .Values.livenessProbe) | nindent 8 }}
      {{- end }}
      {{- if .Values.readinessProbe.enabled }}
      {{- $ready := ternary (dict "path" .Values.livenessProbe.path) dict (eq $role "api") }}
      readinessProbe: {{- include "cosmorama.probe" (list (merge $ready .Values.readinessProbe)) | nindent 8 }}
      {{- end }}
      {{- $needed := ternary (dict) (dict "limits" (dict "nvidia.com/gpu" 1)) (eq (include "cosmorama.model" .) "microcosm") }}
      resources: {{- toYaml (ternary .Values.fleet.api.resources (.Values.resources | default $needed) (eq $role "api")) | nindent 8 }}
      volumeMounts:
        - {name: state, mountPath: /var/lib/cosmorama}
        - {name: dshm, mountPath: /dev/shm}
        {{- if ne $role "api" }}
        - {name: model-store, mountPath: {{ .Values.model.nimCache }}}
        {{- end }}
        {{- with .Values.extraVolumeMounts }}{{ include "cosmorama.named" . | trim | nindent 8 }}{{ end }}
  volumes:
    - {name: state, emptyDir: {}}
    - {name: dshm, emptyDir: {medium: Memory, sizeLimit: {{ .Values.sharedMemory.sizeLimit }}}}
    {{- if ne $role "api" }}
    {{- if .Values.nfs.enabled }}
    - name: model-store
      nfs: {server: {{ required "nfs.server: which server?" .Values.nfs.server }}, path: {{ required "nfs.path: which path?" .Values.nfs.path }}, readOnly: {{ .Values.nfs.readOnly }}}
    {{- else if .Values.hostPath.enabled }}
    - name: model-store
      hostPath: {path: {{ required "hostPath.path: which folder?" .Values.hostPath.path }}, type: DirectoryOrCreate}
    {{- else if .Values.persistence.existingClaim }}
    - name: model-store
      persistentVolumeClaim: {claimName: {{ .Values.persistence.existingClaim }}}
    {{- else if and .Values.persistence.enabled (not .Values.statefulSet.enabled) }}
    - name: model-store
      persistentVolumeClaim: {claimName: {{ include "cosmorama.fullname" . }}-model-store}
    {{- else if not .Values.persistence.enabled }}
    - {name: model-store, emptyDir: {}}
    {{- end }}
    {{- end }}
    {{- with .Values.extraVolumes }}{{ include "cosmorama.named" . | trim | nindent 4 }}{{ end }}
{{- end }}
{{- end }}

{{- define "cosmorama.checked" -}}
{{- $kept := or .Values.persistence.enabled .Values.persistence.existingClaim }}
{{- $stores := add (ternary 1 0 (not (not $kept))) (ternary 1 0 .Values.nfs.enabled) (ternary 1 0 .Values.hostPath.enabled) }}
{{- if gt $stores 1 }}{{ fail "persistence, nfs, hostPath: enable one of them" }}{{ end }}
{{- if and .Values.autoscaling.enabled .Values.keda.enabled }}{{ fail "autoscaling, keda: enable one of them" }}{{ end }}
{{- if and .Values.keda.enabled (not .Values.metrics.serviceMonitor.enabled) }}
{{- fail "keda.enabled: it asks Prometheus for the pods' metrics; enable metrics.serviceMonitor, which brings them there" }}
{{- end }}
{{- $given := include "cosmorama.given" . | fromJson }}
{{- range tuple "apiPort=COSMORAMA_PORT,NIM_HTTP_API_PORT" "nimCache=COSMORAMA_CACHE_PATH,NIM_CACHE_PATH" }}
{{- $value := splitList "=" . | first }}
{{- range splitList "=" . | last | splitList "," }}
{{- if hasKey $given . }}{{ fail (printf "env %s: set model.%s instead, which the chart needs to know too" . $value) }}{{ end }}
{{- end }}
{{- end }}
{{- if eq (get $given "NIM_MODEL_TYPE") "reasoner" }}{{ fail "env NIM_MODEL_TYPE: reasoner: there is no reasoner; only generator" }}{{ end }}
{{- $variant := get $given "NIM_MODEL_VARIANT" }}
{{- $model := include "cosmorama.model" . }}
{{- $variants := list "edge" "nano" "super" "super-t2i" "super-i2v" "super-t2i-4step" "super-i2v-4step" }}
{{- if and $variant (hasPrefix "cosmos3-" $model) (not .Values.model.name) (not (has $variant $variants)) }}
{{- fail (printf "env NIM_MODEL_VARIANT: %s: known are %s; for another one set model.name" $variant (join ", " $variants)) }}
{{- end }}
{{- if contains "nvcr.io/nim/" .Values.image.repository }}
{{- fail (printf "image.repository: %s: this chart starts Cosmorama's image, not the vendor's" .Values.image.repository) }}
{{- end }}
{{- with .Values.multiNode }}{{ if .enabled }}{{ fail "multiNode.enabled: a clip is made within one pod, on several GPUs with COSMORAMA_PARALLEL" }}{{ end }}{{ end }}
{{- if and (kindIs "map" .Values.initContainers) .Values.initContainers.ngcInit }}
{{- fail "initContainers.ngcInit: nothing is downloaded from NGC; a model comes from the hub or from a folder" }}
{{- end }}
{{- $several := or (gt (int .Values.replicaCount) 1) .Values.fleet.enabled .Values.autoscaling.enabled .Values.keda.enabled }}
{{- if and $several (not .Values.database.urlSecret) (not (hasKey $given "COSMORAMA_DATABASE_URL")) (not .Values.envFrom) }}
{{- fail "database.urlSecret: several pods need a database that they share (a secret with COSMORAMA_DATABASE_URL)" }}
{{- end }}
{{- if and $several (not .Values.artifacts.url) (not (hasKey $given "COSMORAMA_ARTIFACTS")) (not .Values.envFrom) }}
{{- fail "artifacts.url: several pods need a store of clips that they share, such as s3://bucket/prefix" }}
{{- end }}
{{- end }}
